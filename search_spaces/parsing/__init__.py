"""From a submitted document to a definition, or to everything that is wrong with it.

`document` reads the sections, the preset rules work out the space and the recipe, and the `*_rules` modules
check what one section demands of another, as far as the sections could be read (`draft`).
"""
