#include "decode/predict.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/lerp.h>

#include <algorithm>

#include "batch/pieces.h"
#include "decode/column_statistics.h"
#include "ops/ops.h"
#include "plain_dispatch.h"

namespace tabes {
namespace {

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

}  // namespace

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
  const int64_t piece = logits_at_once(model.info().vocab_size, features.element_size());

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
    at::Tensor logits = model.project(features.narrow(0, from, count));
    if (request.unguided) {
      // u + (s + 1)(c - u): beyond the guided logits, away from the unguided ones.
      const at::Tensor without = model.project(features.narrow(0, n + from, count));
      logits = at::lerp(without, logits, options.cfg_scale + 1.0);
    }
    logits = logits.contiguous();
    logits.index_fill_(1, request.forbidden, -std::numeric_limits<double>::infinity());
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
