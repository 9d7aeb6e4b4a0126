//! The way through a run that the x86 kernels share.
//!
//! A macro, because a function cannot be generic over instructions: what is not compiled for them is not inlined into
//! what is.

/// Adds the whole vectors of `len` bytes to four sums, so that four additions are in flight; gives the offset of what
/// is left, less than a vector. `take` loads the vector at an offset, of which `offset + VECTOR <= len` holds here.
/// `VECTOR`, `BLOCK` (four of them) and `add_words` are the kernel's own.
macro_rules! add_vectors {
    ($sums:ident, $len:ident, $take:ident) => {{
        let mut at = 0;
        // Whole blocks, then what `len` still has of two vectors and one.
        while at + BLOCK <= $len {
            $sums[0] = add_words($sums[0], $take(at));
            $sums[1] = add_words($sums[1], $take(at + VECTOR));
            $sums[2] = add_words($sums[2], $take(at + 2 * VECTOR));
            $sums[3] = add_words($sums[3], $take(at + 3 * VECTOR));
            at += BLOCK;
        }
        if at + 2 * VECTOR <= $len {
            $sums[0] = add_words($sums[0], $take(at));
            $sums[1] = add_words($sums[1], $take(at + VECTOR));
            at += 2 * VECTOR;
        }
        if at + VECTOR <= $len {
            $sums[2] = add_words($sums[2], $take(at));
            at += VECTOR;
        }
        at
    }};
}

pub(super) use add_vectors;
