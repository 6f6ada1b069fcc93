"""What the tracer does at each operation: one room a family of layers, one function a rule.

To teach the tracer a layer is to write one such function; importing this package registers all of them.
"""

from . import dense, elementwise, functions, moves, parts, products, sets, shapes

__all__ = ["dense", "elementwise", "functions", "moves", "parts", "products", "sets", "shapes"]
