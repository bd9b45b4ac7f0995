#include "batch/device_select.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/cumprod.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/where.h>

#include <limits>

#include "batch/rows.h"

namespace tabes {

Ragged::Ragged(std::vector<int64_t> counts, int64_t width, at::Device device)
    : counts_(std::move(counts)), cu_{0}, width_(width) {
  std::vector<int64_t> flat, places;
  const int64_t rows = static_cast<int64_t>(counts_.size());
  for (int64_t b = 0; b < rows; ++b) {
    for (int64_t k = 0; k < counts_[b]; ++k) flat.push_back(b * width + k);
    for (int64_t k = 0; k < width; ++k) places.push_back(k < counts_[b] ? cu_.back() + k : -1);
    cu_.push_back(static_cast<int64_t>(flat.size()));
  }
  flat_ = to_tensor(flat, device);
  places_ = to_tensor(places, device).view({rows, width});
  inside_ = places_.ge(0);
  places_ = places_.clamp_min(0);
}

at::Tensor Ragged::pack(const at::Tensor& matrix) const {
  return matrix.reshape(-1).index_select(0, flat_);
}

at::Tensor Ragged::unpack(const at::Tensor& values, double fill) const {
  const int64_t rows = static_cast<int64_t>(counts_.size());
  return at::full({rows * width_}, fill, values.options())
      .index_copy_(0, flat_, values)
      .view({rows, width_});
}

at::Tensor rank_by(const at::Tensor& score, const at::Tensor& valid, const at::Tensor& last) {
  const at::Tensor known = at::where(valid, score, -std::numeric_limits<double>::infinity());
  at::Tensor order = at::argsort(known, /*stable=*/true, /*dim=*/1, /*descending=*/true);
  at::Tensor group = valid.bitwise_not().to(at::kLong).mul_(2);
  if (last.defined()) group = group + last.to(at::kLong);
  order = order.gather(1, at::argsort(group.gather(1, order), true, 1, false));
  const at::Tensor ranks = at::arange(score.size(1), order.options()).expand_as(order);
  return at::empty_like(order).scatter_(1, order, ranks);
}

at::Tensor leading(const at::Tensor& key, const Ragged& shape) {
  const int64_t width = shape.width();
  const at::Tensor order = at::argsort(key, true, 1, false).narrow(1, 0, width);
  const at::Tensor past = at::arange(width, order.options()).add_(key.size(1));
  return std::get<0>(at::sort(at::where(shape.inside(), order, past), 1));
}

at::Tensor within_factor(const at::Tensor& confidence, const at::Tensor& valid, double f) {
  const at::Tensor known = at::where(valid, confidence, -std::numeric_limits<double>::infinity());
  const at::Tensor falling = std::get<0>(at::sort(known, 1, /*descending=*/true));
  const at::Tensor rank = at::arange(1, confidence.size(1) + 1, falling.options());
  const at::Tensor least = 1.0 - f / (rank + 1.0);
  const at::Tensor n = valid.sum(1);
  // The first needs no confidence.
  const at::Tensor taken = (falling.ge(least) | rank.eq(1)) & rank.le(n.unsqueeze(1));
  return at::cumprod(taken.to(at::kLong), 1).sum(1);
}

}  // namespace tabes
