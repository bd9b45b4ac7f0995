#include "decode/column_statistics.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>

namespace tabes {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// What is known of the columns so far. The probabilities are of these alone.
struct Merged {
  at::Tensor lse, entropy, first, second;  // [n]; the two largest probabilities
  at::Tensor top, argmax;                  // [n]; the largest logit and where it is
};

// Statistics of the next columns, whose largest logits are `top`. Columns without any token (all of
// them forbidden) have entropy NaN and weigh nothing.
Merged of_part(const ops::RowStatistics& s, const at::Tensor& top, int64_t from) {
  const at::Tensor none = s.lse.eq(-kInfinity);
  const auto unless = [&](const at::Tensor& t) { return at::where(none, 0.0, t); };
  return {s.lse, unless(s.entropy), unless(s.max_prob), unless(s.max_prob - s.margin),
          top,   s.argmax + from};
}

Merged merged(const Merged& a, const Merged& b) {
  Merged m;
  m.lse = at::logaddexp(a.lse, b.lse);
  // Each part's share of the probability, and its own surprise, 0 log 0 being 0.
  const auto scaled = [&](const Merged& part, at::Tensor& entropy) {
    const at::Tensor rise = at::where(part.lse.eq(-kInfinity), kInfinity, m.lse - part.lse);
    const at::Tensor share = (-rise).exp();
    entropy = share * (part.entropy + at::where(share.eq(0), 0.0, rise));
    return share;
  };
  at::Tensor entropy_a, entropy_b;
  const at::Tensor share_a = scaled(a, entropy_a), share_b = scaled(b, entropy_b);
  m.entropy = entropy_a + entropy_b;
  const at::Tensor first_a = a.first * share_a, first_b = b.first * share_b;
  // Ties go to the lowest token. Logits are compared, which are exact.
  const at::Tensor later = b.top.gt(a.top);
  m.first = at::where(later, first_b, first_a);
  m.second = at::where(later, at::maximum(first_a, b.second * share_b),
                       at::maximum(first_b, a.second * share_a));
  m.top = at::where(later, b.top, a.top);
  m.argmax = at::where(later, b.argmax, a.argmax);
  return m;
}

}  // namespace

ops::RowStatistics statistics_by_columns(const Denoiser& model, const at::Tensor& features,
                                         const at::Tensor& forbidden, int64_t columns) {
  const int64_t vocab = model.info().vocab_size;
  // Added to logits: what is NaN or infinite among the forbidden stays seen, as in forbid().
  at::Tensor never = at::zeros({vocab}, features.options());
  never.index_fill_(0, forbidden, -kInfinity);
  Merged all;
  for (int64_t from = 0; from < vocab; from += columns) {
    const int64_t count = std::min(columns, vocab - from);
    at::Tensor logits = model.project_columns(features, from, count).contiguous();
    logits.add_(never.narrow(0, from, count));
    const ops::RowStatistics s = ops::row_statistics(logits);
    const at::Tensor top = at::gather(logits, 1, s.argmax.unsqueeze(1)).squeeze(1);
    const Merged part = of_part(s, top, from);
    all = from == 0 ? part : merged(all, part);
  }
  // A row with nothing but forbidden tokens, which had no share anywhere.
  const at::Tensor none = all.lse.eq(-kInfinity);
  const auto unless = [&](const at::Tensor& t) {
    return at::where(none, std::numeric_limits<double>::quiet_NaN(), t);
  };
  return {all.lse, unless(all.entropy), unless(all.first),
          unless((all.first - all.second).clamp_min(0)), all.argmax};
}

}  // namespace tabes
