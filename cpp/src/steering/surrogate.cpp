#include "steering/surrogate.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sort.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "batch/forbidden.h"
#include "batch/pieces.h"
#include "batch/rows.h"
#include "messages.h"
#include "model/linear.h"
#include "ops/meta.h"
#include "ops/ops.h"
#include "plain_dispatch.h"

namespace tabes {
namespace {

// e~ - e_mask at the candidates: what revealing them adds to their input embeddings.
at::Tensor directions(const Denoiser& model, const SurrogateRequest& request) {
  const at::Tensor table = model.embedding_table();
  const at::Tensor mask = table.narrow(0, model.info().mask_token_id, 1);
  if (request.tokens.defined()) return table.index_select(0, request.tokens) - mask;
  const int64_t n = request.candidates.count();
  const int64_t piece = logits_at_once(model.info().vocab_size, sizeof(float));
  const double tau = request.options.tau;
  const Linear by_table(table, {}, /*prepack=*/false);
  std::vector<at::Tensor> parts;
  for (int64_t from = 0; from < n; from += piece) {
    at::Tensor logits =
        model.project(request.features.narrow(0, from, std::min(piece, n - from))).contiguous();
    forbid(logits, request.forbidden);
    if (tau == 0) {
      const ops::RowStatistics s = ops::row_statistics(logits);
      const at::Tensor bad = s.entropy.isnan().unsqueeze(1);
      parts.push_back((table.index_select(0, s.argmax) - mask)
                          .masked_fill_(bad, std::numeric_limits<double>::quiet_NaN()));
      continue;
    }
    const auto real = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const double inverse = real == at::kDouble ? ops::inverse_temperature<double>(tau)
                                               : ops::inverse_temperature<float>(tau);
    logits = logits.to(real);
    const at::Tensor q = at::softmax((logits - logits.amax(1, true)).mul_(inverse), 1);
    parts.push_back(by_table.adjoint(q.to(table.scalar_type())) - mask);
  }
  return parts.size() == 1 ? parts[0] : at::cat(parts);
}

// Two sets without a common row as one.
RowSet joined(const RowSet& a, const RowSet& b) {
  // Sequences follow one another, so that sorting by row sorts by sequence first.
  const auto [rows, order] = at::sort(at::cat({a.rows, b.rows}));
  RowSet both{rows, a.cu_rows};
  for (size_t i = 0; i < both.cu_rows.size(); ++i) both.cu_rows[i] += b.cu_rows[i];
  if (a.valid.defined() || b.valid.defined()) {
    const auto valid = [](const RowSet& s) {
      return s.valid.defined() ? s.valid : at::ones_like(s.rows, at::kBool);
    };
    both.valid = at::cat({valid(a), valid(b)}).index_select(0, order);
  }
  return both;
}

// What a gradient's passes compute: the batch as it is, or, where they compute whole sequences, the
// sequences of it that have candidates.
struct Part {
  PackedBatch batch;
  RowSet candidates, probes;
};

// A set whose numbers grow by these, [n].
RowSet moved(const RowSet& set, const std::vector<int64_t>& by, std::vector<int64_t> cu_rows) {
  const at::Device device = set.rows.device();
  RowSet result{set.rows + to_tensor(by, device), std::move(cu_rows), set.valid};
  if (set.host.defined()) {
    result.host = device.is_cpu() ? result.rows : set.host + to_tensor(by);
  }
  return result;
}

// Candidates, probes and what must or shall stay active around them, or all rows.
RowSet active_rows(const Denoiser& model, const Part& part, const InfluenceOptions& o,
                   bool disjoint) {
  const PackedBatch& batch = part.batch;
  if (o.adjoint == AdjointKind::dense) return all_rows(batch);
  if (o.halo == 0 && !model.info().logit_shift) {
    if (part.probes.rows.is_same(part.candidates.rows)) return part.candidates;
    if (disjoint) return joined(part.candidates, part.probes);
  }
  const at::Tensor c_rows = part.candidates.on_host(), p_rows = part.probes.on_host();
  const int64_t* candidates = c_rows.const_data_ptr<int64_t>();
  const int64_t* probes = p_rows.const_data_ptr<int64_t>();
  std::vector<int64_t> rows, cu{0};
  for (int64_t b = 0; b < batch.size(); ++b) {
    const int64_t begin = batch.cu_seqlens[b], length = batch.cu_seqlens[b + 1] - begin;
    std::vector<char> is_active(length, 0);
    const auto mark = [&](int64_t row, int64_t before) {
      const int64_t at = row - begin, halo = std::min(o.halo, length);
      const int64_t last = std::min(length - 1, at + halo);
      for (int64_t i = std::max<int64_t>(0, at - std::max(halo, before)); i <= last; ++i) {
        is_active[i] = 1;
      }
    };
    const auto& cu_c = part.candidates.cu_rows;
    const auto& cu_p = part.probes.cu_rows;
    for (int64_t i = cu_c[b]; i < cu_c[b + 1]; ++i) mark(candidates[i], 0);
    // A shifted model predicts a probe at the row before it, whose output must vary.
    for (int64_t i = cu_p[b]; i < cu_p[b + 1]; ++i) mark(probes[i], model.info().logit_shift);
    for (int64_t i = 0; i < length; ++i) {
      if (is_active[i]) rows.push_back(begin + i);
    }
    cu.push_back(static_cast<int64_t>(rows.size()));
  }
  return row_set(rows, std::move(cu), model.info().device);
}

Part steered_part(const SurrogateRequest& request) {
  std::vector<at::Tensor> tokens;
  std::vector<int64_t> moved_c, moved_p;  // how far each row moves
  Part part;
  part.batch.cu_seqlens = part.candidates.cu_rows = part.probes.cu_rows = {0};
  for (int64_t b = 0; b < request.batch.size(); ++b) {
    const auto& cu = request.candidates.cu_rows;
    if (cu[b] == cu[b + 1]) continue;
    const int64_t from = request.batch.cu_seqlens[b];
    const int64_t length = request.batch.cu_seqlens[b + 1] - from;
    tokens.push_back(request.batch.tokens.narrow(0, from, length));
    const int64_t shift = part.batch.cu_seqlens.back() - from;
    const auto move = [&](const std::vector<int64_t>& offsets, std::vector<int64_t>& moved,
                          std::vector<int64_t>& cu_rows) {
      moved.insert(moved.end(), offsets[b + 1] - offsets[b], shift);
      cu_rows.push_back(offsets[b + 1]);
    };
    move(cu, moved_c, part.candidates.cu_rows);
    move(request.probes.cu_rows, moved_p, part.probes.cu_rows);
    part.batch.cu_seqlens.push_back(part.batch.cu_seqlens.back() + length);
  }
  if (static_cast<int64_t>(tokens.size()) == request.batch.size()) {
    return {request.batch, request.candidates, request.probes};
  }
  part.batch.tokens = at::cat(tokens);
  part.candidates = moved(request.candidates, moved_c, std::move(part.candidates.cu_rows));
  const bool same = request.probes.rows.is_same(request.candidates.rows);
  part.probes =
      same ? part.candidates : moved(request.probes, moved_p, std::move(part.probes.cu_rows));
  return part;
}

}  // namespace

void check(const InfluenceOptions& o) {
  if (o.alpha.empty()) refuse("alpha names no point; give one or several numbers from 0 to 1");
  constexpr size_t kMost = 1024;  // each takes a gradient
  if (o.alpha.size() > kMost) {
    refuse("alpha names ", o.alpha.size(), " points, where ", kMost, " are allowed");
  }
  for (double a : o.alpha) {
    if (!(a >= 0 && a <= 1)) refuse("alpha must be from 0 (mask) to 1 (prediction), not ", a);
  }
  if (!(o.tau >= 0) || !std::isfinite(o.tau)) {
    refuse("tau must be 0 (the likeliest token) or above, not ", o.tau);
  }
  if (o.halo < 0) refuse("halo must be 0 or above, not ", o.halo);
}

SurrogateScores surrogate_scores(const Denoiser& model, const SurrogateRequest& request) {
  const PlainDispatch plain;
  const InfluenceOptions& o = request.options;
  const bool frozen = o.context == ContextKind::frozen;
  if (frozen && !request.context) {
    throw InputError("this model keeps no frozen context; use context=\"exact\"");
  }
  at::Tensor delta = directions(model, request), weight;
  if (request.candidates.valid.defined()) delta = delta * request.candidates.valid.unsqueeze(1);
  if (request.probes.valid.defined()) weight = request.probes.valid.to(at::kFloat);
  const Part part =
      frozen ? Part{request.batch, request.candidates, request.probes} : steered_part(request);
  const RowSet active = active_rows(model, part, o, request.disjoint);
  SurrogateScores result;
  if (!request.tokens.defined()) result.cost.head_rows = part.candidates.count();
  at::Tensor gradient, entropy;
  for (double alpha : o.alpha) {
    const EntropyGradient g = model.entropy_gradient({.batch = part.batch,
                                                      .active = active,
                                                      .candidates = part.candidates,
                                                      .probes = part.probes,
                                                      .offset = delta * alpha,
                                                      .weight = weight,
                                                      .forbidden = request.forbidden,
                                                      .frozen = frozen ? request.context : nullptr,
                                                      .poll = o.poll});
    const at::Tensor share = g.gradient.to(at::kDouble);
    gradient = gradient.defined() ? gradient.add_(share) : share;
    const at::Tensor nats = g.entropy.to(at::kDouble);
    entropy = entropy.defined() ? entropy.add_(nats) : nats.clone();
    result.cost += g.cost;
  }
  const double points = static_cast<double>(o.alpha.size());
  result.tis = (gradient * delta.to(at::kDouble)).sum(1).div_(-points);
  result.entropy = entropy.div_(points);
  return result;
}

}  // namespace tabes
