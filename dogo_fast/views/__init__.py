"""View recipes, and the views they make: every view of every image has its own random crop, flip, colour jitter, ...

The semantics are torchvision's (v2, tensors): RandomResizedCrop (bilinear, antialiased), RandomHorizontalFlip,
ColorJitter in a random order with a clamp after each step, RandomGrayscale, GaussianBlur (reflected border),
RandomSolarize (threshold ½). torchvision draws once for a whole batch; here each view of each image has its own draw, a
function of (seed, epoch, index of the image, number of the view) and nothing else.

On a GPU one launch makes all views (kernels/augment.py), on a CPU the same is done in C++ (csrc/augment.cpp); plain
tensors (reference.py) make the same pictures anywhere, and are what both are tested against.
"""

from dogo_fast.views.draws import ViewDraws, draw_views
from dogo_fast.views.launch import Augmentation
from dogo_fast.views.recipe import VIEW_RECIPES, ViewRecipe, blur_size
from dogo_fast.views.reference import apply_draws

__all__ = ["VIEW_RECIPES", "Augmentation", "ViewDraws", "ViewRecipe", "apply_draws", "blur_size", "draw_views"]
