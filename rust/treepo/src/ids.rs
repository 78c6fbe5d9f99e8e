//! Index types. Each is a `u32` that only its own kind of vector is indexed with.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($name:ident, $doc:literal) => {
        #[doc = $doc]
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $name(pub u32);

        impl $name {
            /// The id as an index.
            #[inline]
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(TreeId, "A tree of a forest, by order of arrival.");
id!(PathId, "A path of its tree, by order of creation; path 0 holds the prompt.");
id!(BlockId, "A block of the KV pool; block 0 is reserved and never owned.");
