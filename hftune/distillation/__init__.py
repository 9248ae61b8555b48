# SPDX-License-Identifier: Apache-2.0
"""Knowledge distillation: a student learns from a teacher's answers, in addition to labels."""
