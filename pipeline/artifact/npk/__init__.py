"""The codec ``npk``: integer weights coded by what is known of their neighbours; see FORMAT.md."""
