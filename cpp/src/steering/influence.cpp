#include "tabes/influence.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "batch/column.h"
#include "batch/forbidden.h"
#include "batch/pieces.h"
#include "batch/rows.h"
#include "forked.h"
#include "messages.h"
#include "ops/ops.h"
#include "out_of_memory.h"
#include "plain_dispatch.h"
#include "steering/surrogate.h"

namespace tabes {
namespace {

// How many rows go through the trunk at a time where a sequence is looked at many times over.
constexpr int64_t kRowsAtOnce = 8192;

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
  RowSet candidates, probes;                            // in order of position
  RowSet asked;                                         // both, each row once
  std::vector<int64_t> candidates_asked, probes_asked;  // their numbers among these
  at::Tensor forbidden;                                 // the mask among them
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
  std::vector<int64_t> c_rows, p_rows, a_rows, cu_c{0}, cu_p{0}, cu_a{0};
  int64_t offset = 0;
  for (size_t b = 0; b < tokens.size(); ++b) {
    std::vector<char> use(tokens[b].size(), 0);
    mark(candidate_lists[b], "candidate", b, tokens[b], info.mask_token_id, 1, apart, use);
    mark(probe_lists[b], "probe", b, tokens[b], info.mask_token_id, 2, apart, use);
    for (size_t i = 0; i < use.size(); ++i) {
      if (!use[i]) continue;
      const int64_t row = offset + static_cast<int64_t>(i);
      const auto number = static_cast<int64_t>(a_rows.size());
      if (use[i] & 1) {
        c_rows.push_back(row);
        candidates_asked.push_back(number);
      }
      if (use[i] & 2) {
        p_rows.push_back(row);
        probes_asked.push_back(number);
      }
      a_rows.push_back(row);
    }
    cu_a.push_back(static_cast<int64_t>(a_rows.size()));
    cu_c.push_back(static_cast<int64_t>(c_rows.size()));
    cu_p.push_back(static_cast<int64_t>(p_rows.size()));
    offset += static_cast<int64_t>(tokens[b].size());
    pointers.push_back(&tokens[b]);
  }
  batch = pack(pointers, info.device);
  candidates = row_set(c_rows, std::move(cu_c), info.device);
  probes = row_set(p_rows, std::move(cu_p), info.device);
  asked = row_set(a_rows, std::move(cu_a), info.device);
}

[[noreturn]] void not_a_number(const char* what, size_t b, int64_t position) {
  throw NumericsError(text("the ", what, " of sequence ", b, ", position ", position,
                           " is not a number; check the checkpoint and try dtype float32"));
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
        not_a_number("influence", b, lists[b][order[i]]);
      }
      own.data_ptr<double>()[order[i]] = value;
    }
    result.push_back(own);
  }
  return result;
}

// That the rows' entropies [n] on the CPU are numbers: their logits held no NaN or +inf.
void check_entropies(const PackedBatch& batch, const RowSet& rows, const at::Tensor& entropies) {
  const double* nats = entropies.const_data_ptr<double>();
  for (size_t b = 0; b + 1 < rows.cu_rows.size(); ++b) {
    for (int64_t i = rows.cu_rows[b]; i < rows.cu_rows[b + 1]; ++i) {
      if (std::isfinite(nats[i])) continue;
      not_a_number("entropy", b, rows.rows[i].item<int64_t>() - batch.cu_seqlens[b]);
    }
  }
}

// The likeliest tokens at some rows [n] and their entropies, float64; both on the CPU.
struct Looked {
  at::Tensor token, entropy;
};

// The logits exist for some rows at a time only.
Looked looked_at(const Denoiser& model, const at::Tensor& features, const at::Tensor& forbidden) {
  const int64_t n = features.size(0);
  const int64_t piece = logits_at_once(model.info().vocab_size, features.element_size());
  Looked all{at::empty({n}, at::kLong), at::empty({n}, at::kDouble)};
  for (int64_t from = 0; from < n; from += piece) {
    const int64_t count = std::min(piece, n - from);
    at::Tensor logits = model.project(features.narrow(0, from, count)).contiguous();
    forbid(logits, forbidden);
    const ops::RowStatistics s = ops::row_statistics(logits);
    all.token.narrow(0, from, count).copy_(s.argmax);
    all.entropy.narrow(0, from, count).copy_(s.entropy);
  }
  return all;
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
      model.encode(q.batch, q.asked, options.poll, frozen ? &context : nullptr);
  const auto of = [&](const std::vector<int64_t>& numbers) {
    return features.index_select(0, to_tensor(numbers, features.device()));
  };
  const at::Tensor guessed = of(q.candidates_asked);
  const Column before(looked_at(model, of(q.probes_asked), q.forbidden).entropy);
  const SurrogateScores scores = surrogate_scores(
      model, {q.batch, q.candidates, q.probes, {}, guessed, q.forbidden, options, context.get()});
  Influence result;
  const Column after(scores.entropy);
  if (!before.held.isfinite().all().item<bool>() || !after.held.isfinite().all().item<bool>()) {
    // A candidate's own prediction may be what is wrong, and then it is so everywhere.
    check_entropies(q.batch, q.candidates, looked_at(model, guessed, q.forbidden).entropy);
    check_entropies(q.batch, q.probes, before.held);
    check_entropies(q.batch, q.probes, after.held);
  }
  result.tis = as_given(scores.tis.to(at::kCPU), q.candidates, candidates);
  const auto sum = [&](const Column& nats, size_t b) {
    return std::accumulate(nats.data() + q.probes.cu_rows[b], nats.data() + q.probes.cu_rows[b + 1],
                           0.0);
  };
  for (size_t b = 0; b < candidates.size(); ++b) {
    result.entropy.push_back(sum(before, b));
    result.predicted_entropy.push_back(sum(after, b));
    result.scale.push_back(
        influence_scale(result.entropy[b], result.tis[b].clamp_min(0).sum().item<double>()));
  }
  result.cost = scores.cost;
  result.cost += {.forward_rows = q.batch.rows(), .head_rows = q.probes.count()};
  return result;
}

OneStepFall measured(const Denoiser& model, const std::vector<at::Tensor>& sequences,
                     const std::vector<std::vector<int64_t>>& candidates,
                     const std::vector<std::vector<int64_t>>& probes,
                     const std::vector<int64_t>& forbidden, bool allow_special, const Poll& poll) {
  const PlainDispatch plain;
  const Question q(model, sequences, candidates, probes, forbidden, allow_special, true);
  const at::Device device = model.info().device;
  const Looked guess = looked_at(model, model.encode(q.batch, q.candidates, poll), q.forbidden);
  check_entropies(q.batch, q.candidates, guess.entropy);
  OneStepFall result;
  result.cost = {.forward_rows = q.batch.rows(), .head_rows = q.candidates.count()};
  at::Tensor fall = at::empty({q.candidates.count()}, at::kDouble);
  const at::Tensor c_rows = q.candidates.on_host(), p_rows = q.probes.on_host();
  for (size_t b = 0; b < candidates.size(); ++b) {
    // The sequence as it is, and once more with each candidate written; some at a time.
    const int64_t first = q.candidates.cu_rows[b];
    const int64_t n = q.candidates.cu_rows[b + 1] - first;
    const int64_t n_probes = q.probes.cu_rows[b + 1] - q.probes.cu_rows[b];
    const int64_t begin = q.batch.cu_seqlens[b];
    const auto length = static_cast<int64_t>(q.tokens[b].size());
    const int64_t at_once = std::max<int64_t>(1, kRowsAtOnce / length);
    at::Tensor sums = at::empty({n + 1}, at::kDouble);
    for (int64_t from = 0; from <= n; from += at_once) {
      const int64_t count = std::min(at_once, n + 1 - from);
      std::vector<HostTokens> copies(count, q.tokens[b]);
      std::vector<const HostTokens*> pointers;
      std::vector<int64_t> rows, cu{0};
      for (int64_t i = 0; i < count; ++i) {
        if (const int64_t candidate = first + from + i - 1; candidate >= first) {
          const int64_t at = c_rows.const_data_ptr<int64_t>()[candidate] - begin;
          copies[i][at] = guess.token.const_data_ptr<int64_t>()[candidate];
        }
        pointers.push_back(&copies[i]);
        for (int64_t k = 0; k < n_probes; ++k) {
          const int64_t at = p_rows.const_data_ptr<int64_t>()[q.probes.cu_rows[b] + k] - begin;
          rows.push_back(i * length + at);
        }
        cu.push_back(static_cast<int64_t>(rows.size()));
      }
      const PackedBatch batch = pack(pointers, device);
      const RowSet wanted = row_set(rows, std::move(cu), device);
      const Looked seen = looked_at(model, model.encode(batch, wanted, poll), q.forbidden);
      sums.narrow(0, from, count).copy_(seen.entropy.view({count, n_probes}).sum(1));
      result.cost += {.forward_rows = batch.rows(), .head_rows = wanted.count()};
    }
    fall.narrow(0, first, n).copy_(sums[0] - sums.narrow(0, 1, n));
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
