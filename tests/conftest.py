"""Every shape annotation of the package is checked while the tests run."""

import hypothesis
from jaxtyping import install_import_hook

hypothesis.settings.register_profile(
    "prunus", deadline=None, derandomize=True, max_examples=50, print_blob=True
)
hypothesis.settings.load_profile("prunus")

with install_import_hook("prunus", "typechecking.typechecker"):
    import prunus.check
    import prunus.rng  # noqa: F401
