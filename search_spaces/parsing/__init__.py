"""From a submitted document to a definition, or to everything that is wrong with it.

document          parse_definition: reads the sections, one after the other
plain             makes plain mappings, lists and scalars of whatever was submitted
preset_overrides  works out the space and the recipe from a preset and what the user gives beside it
draft             the document as far as it was readable
*_rules           what one section demands of another, each rule on the draft
"""
