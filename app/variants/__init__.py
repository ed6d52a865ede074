"""Members that requests bring: of a perturbation that they ask for, or of weights that come with them.

What a request brings is checked when it comes, from names and shapes, and becomes an :class:`~app.variants.model.Own`,
which the batcher hands through to the call. Requests whose members have the same kind share calls, each with its own;
those that ask for the very same perturbation are one variant in it. Drawn members are kept for a while, given ones
never.
"""

from app.variants.kept import Kept
from app.variants.limits import Limits
from app.variants.model import ModelVariants, Own, Variants

__all__ = ["Kept", "Limits", "ModelVariants", "Own", "Variants"]
