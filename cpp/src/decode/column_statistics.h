// Statistics of logits that exist for some tokens at a time, so that many rows read the head's
// weights once.
#pragma once

#include "ops/ops.h"
#include "tabes/denoiser.h"

namespace tabes {

// row_statistics of the logits [n, V] of features [n, F] with `forbidden` [f] int64 at probability
// 0, taken `columns` tokens at a time: a product, one pass over it, and the parts merged as partial
// softmaxes are (Milakov and Gimelshein, arXiv 1805.02867).
ops::RowStatistics statistics_by_columns(const Denoiser& model, const at::Tensor& features,
                                         const at::Tensor& forbidden, int64_t columns);

}  // namespace tabes
