# SPDX-License-Identifier: Apache-2.0
"""ReLoRA: low-rank updates that are merged again and again."""
