//! Hand-made trees, right ones and wrong ones.
