# SPDX-License-Identifier: Apache-2.0
"""AdaLoRA: low-rank updates that share a budget of ranks."""
