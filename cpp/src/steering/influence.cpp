#include "tabes/influence.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "decode/rows.h"
#include "messages.h"
#include "plain_dispatch.h"
#include "steering/surrogate.h"

namespace tabes {
namespace {

// Checks one sequence's positions and marks them in `use`: 1 candidate, 2 probe.
void mark(const std::vector<int64_t>& positions, const char* what, size_t b,
          const HostTokens& tokens, int64_t mask, char as, std::vector<char>& use) {
  if (positions.empty()) refuse("sequence ", b, " has no ", what, "s; give at least one position");
  for (const int64_t p : positions) {
    if (p < 0 || p >= static_cast<int64_t>(tokens.size())) {
      refuse(what, " ", p, " of sequence ", b, " is outside its ", tokens.size(), " positions");
    }
    if (tokens[p] != mask) {
      refuse(what, " ", p, " of sequence ", b, " is not masked; it holds token ", tokens[p]);
    }
    if (use[p] == as) refuse(what, " ", p, " of sequence ", b, " is given twice");
    if (use[p]) refuse("position ", p, " of sequence ", b, " is both a candidate and a probe");
    use[p] = as;
  }
}

}  // namespace

Influence influence(const Denoiser& model, const std::vector<at::Tensor>& sequences,
                    const std::vector<std::vector<int64_t>>& candidates,
                    const std::vector<std::vector<int64_t>>& probes,
                    const InfluenceOptions& options) {
  const PlainDispatch plain;
  const ModelInfo& info = model.info();
  check(options);
  const std::vector<HostTokens> tokens = checked_tokens(info, sequences);
  if (candidates.size() != tokens.size() || probes.size() != tokens.size()) {
    refuse("there are ", tokens.size(), " sequences but ", candidates.size(),
           " lists of candidates and ", probes.size(), " of probes");
  }
  std::vector<int64_t> forbidden = options.forbidden;
  forbidden.push_back(info.mask_token_id);
  for (const int64_t id : forbidden) {
    if (id >= 0 && id < info.vocab_size) continue;
    refuse("forbidden token ", id, " is outside the vocabulary of ", info.vocab_size);
  }

  std::vector<const HostTokens*> pointers;
  std::vector<int64_t> c_rows, p_rows, cu_c{0}, cu_p{0};
  int64_t offset = 0;
  for (size_t b = 0; b < tokens.size(); ++b) {
    std::vector<char> use(tokens[b].size(), 0);
    mark(candidates[b], "candidate", b, tokens[b], info.mask_token_id, 1, use);
    mark(probes[b], "probe", b, tokens[b], info.mask_token_id, 2, use);
    for (size_t i = 0; i < use.size(); ++i) {
      if (use[i] == 1) c_rows.push_back(offset + static_cast<int64_t>(i));
      if (use[i] == 2) p_rows.push_back(offset + static_cast<int64_t>(i));
    }
    cu_c.push_back(static_cast<int64_t>(c_rows.size()));
    cu_p.push_back(static_cast<int64_t>(p_rows.size()));
    offset += static_cast<int64_t>(tokens[b].size());
    pointers.push_back(&tokens[b]);
  }
  const PackedBatch batch = pack(pointers, info.device);
  const RowSet candidate_rows = row_set(std::move(c_rows), cu_c, info.device);
  const RowSet probe_rows = row_set(std::move(p_rows), cu_p, info.device);

  std::unique_ptr<Context> context;
  const bool frozen = options.context == ContextKind::frozen;
  const at::Tensor features =
      model.encode(batch, candidate_rows, options.poll, frozen ? &context : nullptr);
  const SurrogateScores scores =
      surrogate_scores(model, {batch, candidate_rows, probe_rows, features,
                               to_tensor(forbidden, info.device), options, context.get()});

  Influence result;
  result.forward_rows = batch.rows() + scores.forward_rows;
  result.backward_rows = scores.backward_rows;
  result.head_rows = scores.head_rows;
  const double* tis = scores.tis.const_data_ptr<double>();
  const double* entropy = scores.entropy.const_data_ptr<double>();
  for (size_t b = 0; b < tokens.size(); ++b) {
    // Rows are in order of position; the caller's order is restored.
    std::vector<size_t> order(candidates[b].size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(),
              [&](size_t x, size_t y) { return candidates[b][x] < candidates[b][y]; });
    at::Tensor own = scores.tis.narrow(0, cu_c[b], cu_c[b + 1] - cu_c[b]).clone();
    for (size_t i = 0; i < order.size(); ++i) {
      const double value = tis[cu_c[b] + static_cast<int64_t>(i)];
      if (!std::isfinite(value)) {
        throw NumericsError(text("the influence of sequence ", b, ", position ",
                                 candidates[b][order[i]],
                                 " is not a number; check the checkpoint and try dtype float32"));
      }
      own.data_ptr<double>()[order[i]] = value;
    }
    result.tis.push_back(own);
    result.predicted_entropy.push_back(
        std::accumulate(entropy + cu_p[b], entropy + cu_p[b + 1], 0.0));
  }
  return result;
}

}  // namespace tabes
