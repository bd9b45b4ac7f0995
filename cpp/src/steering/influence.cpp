#include "tabes/influence.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "batch/column.h"
#include "batch/forbidden.h"
#include "batch/rows.h"
#include "forked.h"
#include "messages.h"
#include "ops/ops.h"
#include "out_of_memory.h"
#include "plain_dispatch.h"
#include "steering/surrogate.h"

namespace tabes {
namespace {

// Checks one sequence's positions and marks them in `use`: 1 candidate, 2 probe, 3 both, unless
// they are to be `apart`.
void mark(const std::vector<int64_t>& positions, const char* what, size_t b,
          const HostTokens& tokens, int64_t mask, char as, bool apart, std::vector<char>& use) {
  if (positions.empty()) refuse("sequence ", b, " has no ", what, "s; give at least one position");
  for (const int64_t p : positions) {
    if (p < 0 || p >= static_cast<int64_t>(tokens.size())) {
      refuse(what, " ", p, " of sequence ", b, " is outside its ", tokens.size(), " positions");
    }
    if (tokens[p] != mask) {
      refuse(what, " ", p, " of sequence ", b, " is not masked; it holds token ", tokens[p]);
    }
    if (use[p] & as) refuse(what, " ", p, " of sequence ", b, " is given twice");
    if (use[p] && apart) {
      refuse("position ", p, " of sequence ", b, " is both a candidate and a probe");
    }
    use[p] |= as;
  }
}

// A checked question: the caller's lists as rows of a packed batch.
struct Question {
  Question(const Denoiser& model, const std::vector<at::Tensor>& sequences,
           const std::vector<std::vector<int64_t>>& candidate_lists,
           const std::vector<std::vector<int64_t>>& probe_lists,
           const std::vector<int64_t>& forbidden_ids, bool allow_special, bool apart);

  std::vector<HostTokens> tokens;
  PackedBatch batch;
  RowSet candidates, probes;  // in order of position
  at::Tensor forbidden;       // the mask among them
};

Question::Question(const Denoiser& model, const std::vector<at::Tensor>& sequences,
                   const std::vector<std::vector<int64_t>>& candidate_lists,
                   const std::vector<std::vector<int64_t>>& probe_lists,
                   const std::vector<int64_t>& forbidden_ids, bool allow_special, bool apart)
    : tokens(checked_tokens(model.info(), sequences)) {
  const ModelInfo& info = model.info();
  if (candidate_lists.size() != tokens.size() || probe_lists.size() != tokens.size()) {
    refuse("there are ", tokens.size(), " sequences but ", candidate_lists.size(),
           " lists of candidates and ", probe_lists.size(), " of probes");
  }
  forbidden = to_tensor(checked_forbidden(info, forbidden_ids, allow_special), info.device);
  std::vector<const HostTokens*> pointers;
  std::vector<int64_t> c_rows, p_rows, cu_c{0}, cu_p{0};
  int64_t offset = 0;
  for (size_t b = 0; b < tokens.size(); ++b) {
    std::vector<char> use(tokens[b].size(), 0);
    mark(candidate_lists[b], "candidate", b, tokens[b], info.mask_token_id, 1, apart, use);
    mark(probe_lists[b], "probe", b, tokens[b], info.mask_token_id, 2, apart, use);
    for (size_t i = 0; i < use.size(); ++i) {
      if (use[i] & 1) c_rows.push_back(offset + static_cast<int64_t>(i));
      if (use[i] & 2) p_rows.push_back(offset + static_cast<int64_t>(i));
    }
    cu_c.push_back(static_cast<int64_t>(c_rows.size()));
    cu_p.push_back(static_cast<int64_t>(p_rows.size()));
    offset += static_cast<int64_t>(tokens[b].size());
    pointers.push_back(&tokens[b]);
  }
  batch = pack(pointers, info.device);
  candidates = row_set(std::move(c_rows), std::move(cu_c), info.device);
  probes = row_set(std::move(p_rows), std::move(cu_p), info.device);
}

// Values of the candidates in order of position, back in the caller's order.
std::vector<at::Tensor> as_given(const at::Tensor& values, const RowSet& rows,
                                 const std::vector<std::vector<int64_t>>& lists) {
  std::vector<at::Tensor> result;
  for (size_t b = 0; b < lists.size(); ++b) {
    std::vector<size_t> order(lists[b].size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(),
              [&](size_t x, size_t y) { return lists[b][x] < lists[b][y]; });
    at::Tensor own = at::empty({static_cast<int64_t>(order.size())}, at::kDouble);
    for (size_t i = 0; i < order.size(); ++i) {
      const double value =
          values.const_data_ptr<double>()[rows.cu_rows[b] + static_cast<int64_t>(i)];
      if (!std::isfinite(value)) {
        throw NumericsError(text("the influence of sequence ", b, ", position ", lists[b][order[i]],
                                 " is not a number; check the checkpoint and try dtype float32"));
      }
      own.data_ptr<double>()[order[i]] = value;
    }
    result.push_back(own);
  }
  return result;
}

// Entropies [n] of the rows' predictions.
at::Tensor entropies(const Denoiser& model, const at::Tensor& features,
                     const at::Tensor& forbidden) {
  at::Tensor logits = model.project(features).contiguous();
  logits.index_fill_(1, forbidden, -std::numeric_limits<double>::infinity());
  return ops::row_statistics(logits).entropy.to(at::kCPU, at::kDouble);
}

Influence scored(const Denoiser& model, const std::vector<at::Tensor>& sequences,
                 const std::vector<std::vector<int64_t>>& candidates,
                 const std::vector<std::vector<int64_t>>& probes, const InfluenceOptions& options) {
  const PlainDispatch plain;
  check(options);
  const Question q(model, sequences, candidates, probes, options.forbidden, options.allow_special,
                   false);
  std::unique_ptr<Context> context;
  const bool frozen = options.context == ContextKind::frozen;
  const at::Tensor features =
      model.encode(q.batch, q.candidates, options.poll, frozen ? &context : nullptr);
  const SurrogateScores scores = surrogate_scores(
      model, {q.batch, q.candidates, q.probes, {}, features, q.forbidden, options, context.get()});
  Influence result;
  result.tis = as_given(scores.tis.to(at::kCPU), q.candidates, candidates);
  const Column entropies(scores.entropy);
  const double* entropy = entropies.data();
  for (size_t b = 0; b < candidates.size(); ++b) {
    result.predicted_entropy.push_back(
        std::accumulate(entropy + q.probes.cu_rows[b], entropy + q.probes.cu_rows[b + 1], 0.0));
  }
  result.forward_rows = q.batch.rows() + scores.forward_rows;
  result.backward_rows = scores.backward_rows;
  result.head_rows = scores.head_rows;
  return result;
}

OneStepFall measured(const Denoiser& model, const std::vector<at::Tensor>& sequences,
                     const std::vector<std::vector<int64_t>>& candidates,
                     const std::vector<std::vector<int64_t>>& probes,
                     const std::vector<int64_t>& forbidden, bool allow_special, const Poll& poll) {
  const PlainDispatch plain;
  const Question q(model, sequences, candidates, probes, forbidden, allow_special, true);
  const at::Device device = model.info().device;
  at::Tensor guess_logits = model.project(model.encode(q.batch, q.candidates, poll)).contiguous();
  guess_logits.index_fill_(1, q.forbidden, -std::numeric_limits<double>::infinity());
  const at::Tensor guess = guess_logits.argmax(1).to(at::kCPU);
  OneStepFall result;
  result.forward_rows = q.batch.rows();
  at::Tensor fall = at::empty({q.candidates.count()}, at::kDouble);
  const at::Tensor c_rows = q.candidates.rows.to(at::kCPU), p_rows = q.probes.rows.to(at::kCPU);
  for (size_t b = 0; b < candidates.size(); ++b) {
    // The sequence as it is, and once more with each candidate written.
    const int64_t first = q.candidates.cu_rows[b];
    const int64_t n = q.candidates.cu_rows[b + 1] - first;
    const int64_t n_probes = q.probes.cu_rows[b + 1] - q.probes.cu_rows[b];
    const int64_t begin = q.batch.cu_seqlens[b];
    std::vector<HostTokens> copies(n + 1, q.tokens[b]);
    std::vector<const HostTokens*> pointers;
    std::vector<int64_t> rows, cu{0};
    for (int64_t i = 0; i <= n; ++i) {
      if (i > 0) {
        const int64_t at = c_rows.const_data_ptr<int64_t>()[first + i - 1] - begin;
        copies[i][at] = guess.const_data_ptr<int64_t>()[first + i - 1];
      }
      pointers.push_back(&copies[i]);
      for (int64_t k = 0; k < n_probes; ++k) {
        const int64_t at = p_rows.const_data_ptr<int64_t>()[q.probes.cu_rows[b] + k] - begin;
        rows.push_back(i * static_cast<int64_t>(q.tokens[b].size()) + at);
      }
      cu.push_back(static_cast<int64_t>(rows.size()));
    }
    const PackedBatch batch = pack(pointers, device);
    const RowSet wanted = row_set(std::move(rows), std::move(cu), device);
    const at::Tensor sums = entropies(model, model.encode(batch, wanted, poll), q.forbidden)
                                .view({n + 1, n_probes})
                                .sum(1);
    fall.narrow(0, first, n).copy_(sums[0] - sums.narrow(0, 1, n));
    result.forward_rows += batch.rows();
  }
  result.fall = as_given(fall, q.candidates, candidates);
  return result;
}

template <typename Work>
auto within(const Denoiser& model, size_t sequences, Work&& work) {
  return within_memory(std::forward<Work>(work), [&] {
    return text("out of memory on ", model.info().device, " for the influence of ", sequences,
                " sequences: pass fewer at a time, shorter ones, or fewer probes");
  });
}

}  // namespace

Influence influence(const Denoiser& model, const std::vector<at::Tensor>& sequences,
                    const std::vector<std::vector<int64_t>>& candidates,
                    const std::vector<std::vector<int64_t>>& probes,
                    const InfluenceOptions& options) {
  enter(model.info().device);
  return within(model, sequences.size(),
                [&] { return scored(model, sequences, candidates, probes, options); });
}

OneStepFall one_step_fall(const Denoiser& model, const std::vector<at::Tensor>& sequences,
                          const std::vector<std::vector<int64_t>>& candidates,
                          const std::vector<std::vector<int64_t>>& probes,
                          const std::vector<int64_t>& forbidden, bool allow_special,
                          const Poll& poll) {
  enter(model.info().device);
  return within(model, sequences.size(), [&] {
    return measured(model, sequences, candidates, probes, forbidden, allow_special, poll);
  });
}

}  // namespace tabes
