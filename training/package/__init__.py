"""From trained runs to verified model packages."""
