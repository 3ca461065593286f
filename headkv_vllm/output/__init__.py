# SPDX-License-Identifier: Apache-2.0
"""What commands show and write: errors, tables, pictures, progress, files."""
