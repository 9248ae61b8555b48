# SPDX-License-Identifier: Apache-2.0
"""QLoRA: LoRA on a base in 4 bits."""
