# SPDX-License-Identifier: Apache-2.0
"""Prompt tuning, P-tuning and prefix tuning: virtual tokens learn."""
