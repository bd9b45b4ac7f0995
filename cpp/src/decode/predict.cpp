#include "decode/predict.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/lerp.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <limits>

#include "batch/forbidden.h"
#include "batch/pieces.h"
#include "decode/column_statistics.h"
#include "ops/call.h"
#include "ops/ops.h"
#include "plain_dispatch.h"

namespace tabes {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The batch followed by its unguided twin, so that guidance is one forward pass over both.
PackedBatch joined(const PackedBatch& a, const PackedBatch& b) {
  PackedBatch both{at::cat({a.tokens, b.tokens}), a.cu_seqlens};
  for (int64_t i = 1; i <= b.size(); ++i) both.cu_seqlens.push_back(a.rows() + b.cu_seqlens[i]);
  return both;
}

RowSet joined(const RowSet& rows, int64_t offset) {
  RowSet both{at::cat({rows.rows, rows.rows + offset}), rows.cu_rows};
  for (size_t i = 1; i < rows.cu_rows.size(); ++i) {
    both.cu_rows.push_back(rows.count() + rows.cu_rows[i]);
  }
  return both;
}

// u + (s + 1) (c - u) of guided logits c and unguided ones u, see GenerateOptions::cfg_scale:
// beyond the guided logits, away from the unguided ones. As a distribution that is p_c^(s + 1) /
// p_u^s, which says what -inf comes to. [n, V] of the type that statistics are computed in.
at::Tensor guided(const at::Tensor& with, const at::Tensor& without, double scale) {
  const at::ScalarType real = ops::accumulate_type(with.scalar_type());
  const at::Tensor c = with.to(real), u = without.to(real);
  at::Tensor logits = at::lerp(u, c, scale + 1.0);
  const at::Tensor never = c.eq(-kInfinity);
  logits.masked_fill_(never, -kInfinity);
  // Tokens that only being given makes possible are infinitely likelier than all others; p_u, which
  // is 0 of each, does not tell them apart.
  const at::Tensor only_given = u.eq(-kInfinity).logical_and_(never.logical_not());
  logits = at::where(only_given.any(1, /*keepdim=*/true),
                     at::where(only_given, c * (scale + 1.0), -kInfinity), logits);
  // A NaN or +inf in either pass must not be lost.
  const at::Tensor good = c.lt(kInfinity).logical_and_(u.lt(kInfinity));
  return logits.masked_fill_(good.logical_not_(), std::numeric_limits<double>::quiet_NaN());
}

}  // namespace

Predictions no_predictions(at::Device device) {
  const at::Tensor none = at::empty({0}, at::TensorOptions(device).dtype(at::kFloat));
  return {none.to(at::kLong), none, none, none, none};
}

Predicted predict(const Denoiser& model, const PredictRequest& request) {
  const PlainDispatch plain;
  const GenerateOptions& options = request.options;
  const int64_t n = request.rows.count();
  Predicted result;
  auto* kept = request.keep_context ? &result.context : nullptr;
  const at::Tensor features =
      request.active ? model.encode_active(request.batch, *request.active, request.rows,
                                           *request.context, options.poll)
      : request.unguided
          ? model.encode(joined(request.batch, *request.unguided),
                         joined(request.rows, request.batch.rows()), options.poll, kept)
          : model.encode(request.batch, request.rows, options.poll, kept);
  if (n == 0) {
    result.predictions = no_predictions(features.device());
    result.features = features;
    return result;
  }
  // Guided logits are those of two passes and some numbers of their own.
  const int64_t copies = request.unguided ? 6 : 1;
  const int64_t piece = logits_at_once(copies * model.info().vocab_size, features.element_size());

  if (n > piece && options.temperature == 0 && !request.unguided && model.projects_columns()) {
    // Drawing needs whole rows; without it the weights are read once, not once a piece.
    const ops::RowStatistics s = statistics_by_columns(model, features, request.forbidden,
                                                       logits_at_once(n, features.element_size()));
    result.predictions = {s.argmax, s.max_prob, s.max_prob, s.margin, s.entropy};
    result.features = features;
    return result;
  }
  std::vector<at::Tensor> parts[5];
  for (int64_t from = 0; from < n; from += piece) {
    if (options.poll) options.poll();
    const int64_t count = std::min(piece, n - from);
    const auto projected = [&](int64_t first) {
      at::Tensor logits = model.project(features.narrow(0, first, count)).contiguous();
      return forbid(logits, request.forbidden);
    };
    at::Tensor logits = projected(from);
    if (request.unguided) logits = guided(logits, projected(n + from), options.cfg_scale);
    const ops::RowStatistics s = ops::row_statistics(logits);
    at::Tensor token = s.argmax, confidence = s.max_prob;
    if (options.temperature > 0) {
      token = ops::sample_rows(logits, request.uniforms.narrow(0, from, count), options.temperature,
                               options.top_k, options.top_p);
      const at::Tensor chosen = at::gather(logits, 1, token.unsqueeze(1)).squeeze(1);
      confidence = at::exp(chosen.to(s.lse.scalar_type()) - s.lse);
    }
    const at::Tensor piece_of[5] = {token, confidence, s.max_prob, s.margin, s.entropy};
    for (int i = 0; i < 5; ++i) parts[i].push_back(piece_of[i]);
  }
  const auto whole = [&](int i) { return parts[i].size() == 1 ? parts[i][0] : at::cat(parts[i]); };
  result.predictions = {whole(0), whole(1), whole(2), whole(3), whole(4)};
  result.features = features.narrow(0, 0, n);
  return result;
}

}  // namespace tabes
