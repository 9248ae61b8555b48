# SPDX-License-Identifier: Apache-2.0
"""Training of a whole model except for frozen layers, with gradual unfreezing."""
