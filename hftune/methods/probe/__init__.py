# SPDX-License-Identifier: Apache-2.0
"""A classical classifier on the features of a frozen trunk."""
