#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/softmax.h>

#include "ops/ops.h"

namespace tabes::ops {
namespace {

// q [b, H, n, d], k and v [b, Hkv, L, d], bias [b, 1, n, L] -> [b, H, n, d]. Which route is fastest
// was measured on one core at L = 36..512: the flash kernel for float32, plain products for
// bfloat16.
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                  const std::optional<at::Tensor>& bias) {
  const bool grouped = q.size(1) != k.size(1);
  if (!q.is_cpu()) {
    return at::scaled_dot_product_attention(q, k, v, bias, 0.0, false, scale, grouped);
  }
  if (q.scalar_type() != at::kBFloat16 || bias) {
    return std::get<0>(
        at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, false, bias, scale));
  }
  const int64_t b = q.size(0), heads = q.size(1), n = q.size(2), d = q.size(3), length = k.size(2);
  // A group's queries share a key head: stack them as more query rows of it.
  const int64_t groups = k.size(1);
  const at::Tensor queries = q.reshape({b * groups, heads / groups * n, d});
  at::Tensor score =
      at::baddbmm(at::empty({1, 1, 1}, q.options()), queries,
                  k.reshape({b * groups, length, d}).transpose(1, 2), /*beta=*/0, scale);
  at::softmax_out(score, score, -1);
  return at::bmm(score, v.reshape({b * groups, length, d})).view({b, heads, n, d});
}

}  // namespace

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const std::vector<int64_t>& cu_q, const std::vector<int64_t>& cu_k,
                     double scale, const std::optional<at::Tensor>& bias) {
  const int64_t heads = q.size(1), width = q.size(2), groups = k.size(1);
  const int64_t batch = static_cast<int64_t>(cu_k.size()) - 1;
  at::Tensor out;
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
      const at::Tensor mixed = attend(part(q, cu_q[b], n, heads), part(k, cu_k[b], length, groups),
                                      part(v, cu_k[b], length, groups), scale, offsets)
                                   .transpose(1, 2)
                                   .reshape({count * n, heads * width});
      if (count == batch) return mixed;
      if (!out.defined()) out = at::empty({q.size(0), heads * width}, q.options());
      out.narrow(0, cu_q[b], count * n).copy_(mixed);
    }
    b = end;
  }
  return out.defined() ? out : at::empty({q.size(0), heads * width}, q.options());
}

}  // namespace tabes::ops
