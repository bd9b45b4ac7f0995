#include <ATen/ops/_scaled_dot_product_efficient_attention.h>
#include <ATen/ops/_scaled_dot_product_flash_attention.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include "ops/ops.h"

namespace tabes::ops {
namespace {

// FlashAttention-2 by name.
bool has_flash(const at::Tensor& q) {
  return (q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kHalf) && q.size(3) % 8 == 0 &&
         q.size(3) <= 256;
}

// On a GPU, out [b, H, n, d] with its log-sum-exp [b, H, n]; undefined where no kernel gives both.
KeptAttention attend_kept(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          double scale) {
  if (q.is_cpu() || q.scalar_type() == at::kDouble || q.size(3) % 8 != 0) return {};
  if (q.scalar_type() != at::kFloat) {
    if (!has_flash(q)) return {};
    const auto result = at::_scaled_dot_product_flash_attention(q, k, v, 0.0, false, false, scale);
    return {std::get<0>(result), std::get<1>(result)};
  }
  // This kernel has no grouped heads, and pads the log-sum-exp to a multiple of 32 queries.
  const int64_t repeat = q.size(1) / k.size(1);
  const auto each = [&](const at::Tensor& t) {
    return repeat == 1 ? t : t.repeat_interleave(repeat, 1);
  };
  const auto result = at::_scaled_dot_product_efficient_attention(
      q, each(k), each(v), std::nullopt, /*compute_log_sumexp=*/true, 0.0, false, scale);
  return {std::get<0>(result), std::get<1>(result).narrow(2, 0, q.size(2))};
}

// q [b, H, n, d], k and v [b, Hkv, L, d], bias [b, 1, n, L] -> [b, H, n, d].
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                  const std::optional<at::Tensor>& bias) {
  const bool grouped = q.size(1) != k.size(1);
  if (!q.is_cpu()) {
    // For fewer queries than keys, whose number changes from step to step, not PyTorch's choice: on
    // recent GPUs it takes cuDNN, which builds a plan for every new shape (20 ms and more).
    if (!bias && has_flash(q) && q.size(2) != k.size(2)) {
      return std::get<0>(
          at::_scaled_dot_product_flash_attention(q, k, v, 0.0, false, false, scale));
    }
    return at::scaled_dot_product_attention(q, k, v, bias, 0.0, false, scale, grouped);
  }
  if (q.scalar_type() == at::kBFloat16) {
    // PyTorch's bfloat16 products keep memory for every pair of lengths they meet, and this way was
    // no slower: 0.6 to 1.2 of their time, and 1.4 with one width at one length.
    const auto wide = [](const at::Tensor& t) { return t.to(at::kFloat); };
    return attend(wide(q), wide(k), wide(v), scale, bias ? std::optional(wide(*bias)) : bias)
        .to(at::kBFloat16);
  }
  return std::get<0>(
      at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, false, bias, scale));
}

KeptAttention ragged(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const std::vector<int64_t>& cu_q, const std::vector<int64_t>& cu_k,
                     double scale, const std::optional<at::Tensor>& bias, bool keep) {
  const int64_t heads = q.size(1), width = q.size(2), groups = k.size(1);
  const int64_t batch = static_cast<int64_t>(cu_k.size()) - 1;
  KeptAttention all;
  for (int64_t b = 0; b < batch;) {
    // Neighbours of equal lengths are one call.
    const int64_t n = cu_q[b + 1] - cu_q[b], length = cu_k[b + 1] - cu_k[b];
    int64_t end = b + 1;
    while (end < batch && cu_q[end + 1] - cu_q[end] == n && cu_k[end + 1] - cu_k[end] == length) {
      ++end;
    }
    const int64_t count = end - b;
    if (n > 0) {
      const auto part = [&](const at::Tensor& t, int64_t from, int64_t rows, int64_t h) {
        return t.narrow(0, from, count * rows).view({count, rows, h, width}).transpose(1, 2);
      };
      std::optional<at::Tensor> offsets;
      if (bias) {
        offsets =
            bias->narrow(0, cu_q[b], count * n).narrow(1, 0, length).reshape({count, 1, n, length});
      }
      const at::Tensor own_q = part(q, cu_q[b], n, heads), own_k = part(k, cu_k[b], length, groups),
                       own_v = part(v, cu_k[b], length, groups);
      KeptAttention piece;
      if (keep) piece = attend_kept(own_q, own_k, own_v, scale);
      if (!piece.out.defined()) piece.out = attend(own_q, own_k, own_v, scale, offsets);
      piece.out = piece.out.transpose(1, 2).reshape({count * n, heads * width});
      if (piece.lse.defined()) piece.lse = piece.lse.transpose(1, 2).reshape({count * n, heads});
      if (count == batch) return piece;
      if (!all.out.defined()) {
        all.out = at::empty({q.size(0), heads * width}, q.options());
        if (piece.lse.defined()) all.lse = at::empty({q.size(0), heads}, piece.lse.options());
      }
      all.out.narrow(0, cu_q[b], count * n).copy_(piece.out);
      if (piece.lse.defined()) all.lse.narrow(0, cu_q[b], count * n).copy_(piece.lse);
    }
    b = end;
  }
  if (!all.out.defined()) all.out = at::empty({q.size(0), heads * width}, q.options());
  return all;
}

}  // namespace

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const std::vector<int64_t>& cu_q, const std::vector<int64_t>& cu_k,
                     double scale, const std::optional<at::Tensor>& bias) {
  return ragged(q, k, v, cu_q, cu_k, scale, bias, /*keep=*/false).out;
}

KeptAttention attention_kept(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const std::vector<int64_t>& cu_q, const std::vector<int64_t>& cu_k,
                             double scale) {
  return ragged(q, k, v, cu_q, cu_k, scale, std::nullopt, /*keep=*/true);
}

}  // namespace tabes::ops
