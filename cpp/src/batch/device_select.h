// Choosing rows on the device: as batch/select.h, for all sequences at once and without reading a
// number on the host. Matrices are [B, K], a sequence a row.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace tabes {

// The first counts[b] columns of every row b of a [B, width] matrix, as one vector, and back.
class Ragged {
 public:
  Ragged(std::vector<int64_t> counts, int64_t width, at::Device device);

  const std::vector<int64_t>& counts() const { return counts_; }
  const std::vector<int64_t>& cu() const { return cu_; }  // [B + 1]
  int64_t total() const { return cu_.back(); }
  int64_t width() const { return width_; }

  at::Tensor pack(const at::Tensor& matrix) const;  // [B, width] -> [total]
  // [total] -> [B, width], `fill` elsewhere.
  at::Tensor unpack(const at::Tensor& values, double fill) const;
  // The place of each entry in the packed vector, 0 for those that have none; [B, width] int64.
  const at::Tensor& places() const { return places_; }
  // Which entries have one; [B, width] bool.
  const at::Tensor& inside() const { return inside_; }

 private:
  std::vector<int64_t> counts_, cu_;
  int64_t width_;
  at::Tensor flat_, places_, inside_;
};

// Every entry's rank, from 0, by falling score, ties to the lowest column; [B, K] int64. Entries
// that are `last` come after all others, and those that are not `valid` after these.
at::Tensor rank_by(const at::Tensor& score, const at::Tensor& valid, const at::Tensor& last = {});

// For every row b the shape.counts()[b] columns with the smallest keys, ties to the lowest column,
// increasing; [B, shape.width()] int64. Entries past these are K and more.
at::Tensor leading(const at::Tensor& key, const Ragged& shape);

// within_factor() of the valid confidences of every row, 0 of none; [B] int64.
at::Tensor within_factor(const at::Tensor& confidence, const at::Tensor& valid, double f);

}  // namespace tabes
