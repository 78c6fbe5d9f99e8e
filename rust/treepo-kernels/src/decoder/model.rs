//! From token ids to logits in one call.

use super::pass::Pass;
use super::{
    DecoderLayer, Error, Norm, Packed, Rotary, Workspace, check_layers, check_rotary, contiguous,
    parts,
};
use crate::attention::Step;
use crate::element::Element;
use crate::elementwise::{Rows, gather, rms_norm};
use crate::linear::{Summands, linear};
use crate::simd::Level;
use crate::team::Team;

/// A language model whose parts are all kernels:
///
/// ```text
/// logits = head(norm(layers(embedding[ids])))
/// ```
#[derive(Debug, Clone)]
pub struct Model<'a, T> {
    /// A row for each token of the vocabulary, as wide as the layers.
    pub embedding: Rows<T>,
    /// Rows of the embedding.
    pub num_embeddings: usize,
    /// At least one.
    pub layers: Vec<DecoderLayer<'a, T>>,
    /// Behind the last layer.
    pub norm: Norm<T>,
    /// An output for each token of the vocabulary.
    pub head: Packed<T>,
}

/// The tokens of a step.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    /// `[num_tokens]`.
    pub ids: &'a [i64],
    /// Those whose logits are wanted, by their place in the step; all if absent.
    pub wanted: Option<&'a [i64]>,
}

impl Tokens<'_> {
    fn check(&self, num_tokens: usize, num_embeddings: usize) -> Result<(), Error> {
        let given = self.ids.len();
        if given != num_tokens {
            return Err(parts(format!("{given} ids for a step of {num_tokens} tokens")));
        }
        for (name, indices, end) in [
            ("id", self.ids, num_embeddings),
            ("wanted place", self.wanted.unwrap_or(&[]), num_tokens),
        ] {
            let is_within = |&&index: &&i64| usize::try_from(index).is_ok_and(|x| x < end);
            if let Some(index) = indices.iter().find(|index| !is_within(index)) {
                return Err(parts(format!("{name} {index} lies outside 0..{end}")));
            }
        }
        Ok(())
    }
}

impl<T> Model<'_, T> {
    /// Whether its parts fit together.
    ///
    /// # Errors
    /// [`Error::Parts`] names the part that does not.
    pub fn check(&self) -> Result<(), Error> {
        let Some(width) = self.layers.first().map(DecoderLayer::width) else {
            return Err(parts("a model without layers".into()));
        };
        check_layers(&self.layers)?;
        if self.embedding.stride < width {
            let stride = self.embedding.stride;
            return Err(parts(format!("an embedding of {stride} elements, layers of {width}")));
        }
        let ends =
            [("the norm", self.norm.norm.width), ("the head's input", self.head.shape.in_features)];
        match ends.into_iter().find(|&(_, found)| found != width) {
            None => Ok(()),
            Some((name, found)) => {
                Err(parts(format!("{name} has {found} elements, the layers {width}")))
            }
        }
    }
}

/// Computes the logits of a step's tokens, `[num_wanted, vocabulary]`. What nobody wants of the last
/// layer is not computed, but for keys and values.
///
/// # Errors
/// If the model's parts do not fit together, ids or places lie outside, a layer rotates by angles
/// that are missing or do not fit, or there is no memory for what lies between the kernels.
///
/// # Panics
/// As [`crate::attention::attend`].
///
/// # Safety
/// Pointers hold what their fields say, in the shapes of the model and the step, and `output` has
/// room. Nothing of that overlaps, and nobody else writes any of it, or touches output and pool,
/// meanwhile.
#[allow(clippy::too_many_arguments, reason = "buffers of one call")]
pub unsafe fn logits<T: Element>(
    team: &Team,
    level: Level,
    model: &Model<'_, T>,
    step: &Step,
    rotary: Option<Rotary<T>>,
    tokens: Tokens<'_>,
    workspace: &mut Workspace,
    output: *mut T,
) -> Result<(), Error> {
    model.check()?;
    check_rotary(&model.layers, rotary.map(|x| x.dim))?;
    tokens.check(step.num_tokens(), model.num_embeddings)?;
    let (width, num_tokens) = (model.norm.norm.width, step.num_tokens());
    let num_wanted = tokens.wanted.map_or(num_tokens, <[i64]>::len);
    let Workspace { of_layer, of_model } = workspace;
    let lens = [num_tokens, tokens.wanted.map_or(0, <[i64]>::len)].map(|rows| rows * width);
    of_model.reserve::<T>(&lens)?;
    let [hidden, wanted] = of_model.arrays(lens);
    // SAFETY: the caller's condition; ids are rows of the embedding, and the arrays have room.
    unsafe {
        gather(team, tokens.ids, model.embedding, width, hidden);
        let pass = Pass { team, level, step, rotary, wanted: None };
        let rows = contiguous(hidden, width);
        let (last, others) = model.layers.split_last().expect("checked");
        for layer in others {
            pass.layer(layer, of_layer, rows, hidden)?;
        }
        let to = if tokens.wanted.is_some() { wanted } else { hidden };
        Pass { wanted: tokens.wanted, ..pass }.layer(last, of_layer, rows, to)?;
        let (norm, rows) = (model.norm, contiguous(to, width));
        rms_norm(team, level, num_wanted, &norm.norm, rows, norm.weight, to);
        let (head, summands) = (model.head, Summands { bias: model.head.bias, residual: None });
        linear(team, level, num_wanted, head.shape, rows, head.weight, summands, output);
    }
    Ok(())
}
