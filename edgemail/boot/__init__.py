"""The program: commands, configuration, composition, first start. It may know every other part."""
