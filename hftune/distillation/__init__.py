# SPDX-License-Identifier: Apache-2.0
"""Knowledge distillation: a student learns from the answers of a teacher beside its labels."""
