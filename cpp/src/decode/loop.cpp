#include "decode/loop.h"

#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>

#include "batch/forbidden.h"
#include "batch/select.h"
#include "decode/answers.h"
#include "decode/counted.h"
#include "messages.h"

namespace tabes {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

Loop::Loop(Decode decode) : Decode(std::move(decode)) {}

GenerateResult Loop::run() {
  GenerateResult result;
  const auto start = Clock::now();
  for (int64_t number = 0; unfinished(); ++number) {
    StepRecord* before = number ? &result.trace.back() : nullptr;
    result.trace.push_back(within_step(number, [&] { return step(number, before); }));
    count_rows(result.trace.back(), result);
    if (options_.callback && !options_.callback(result.trace.back(), tokens())) {
      result.finished = !unfinished();
      break;
    }
  }
  close(result);
  result.seconds = seconds_since(start);
  return result;
}

StepRecord Loop::step(int64_t number, StepRecord* before) {
  const auto start = Clock::now();
  Step now;
  now.record.step = number;
  now.record.steps = most_steps(number);
  for (Canvas& c : canvases_) {
    now.record.masked.push_back(c.schedule.masked());
    now.record.eligible.push_back(0);
    now.record.predicted_fall.push_back(kNan);
    now.record.realised_fall.push_back(kNan);
    if (!c.schedule.done()) now.live.push_back(&c);
  }
  now.layout = lay_out(now.live, info_, policy_->wants_waiting());
  const auto& cu = now.layout.eligible.cu_rows;
  for (size_t b = 0; b < now.live.size(); ++b) {
    now.record.eligible[now.live[b]->place] = cu[b + 1] - cu[b];
  }
  look(now);
  if (before) realise(now, *before);
  write(now, decide(now));
  now.record.seconds = seconds_since(start);
  return std::move(now.record);
}

Decision Loop::decide(Step& now) const {
  const int64_t n = now.layout.eligible.count();
  std::vector<int64_t> place, sequence, steps, total, block_step, block_steps, first, quota;
  std::vector<int64_t> revealed, cu_revealed{0};
  std::vector<double> confidence;
  for (size_t b = 0; b < now.live.size(); ++b) {
    const Canvas& c = *now.live[b];
    place.push_back(static_cast<int64_t>(c.place));
    sequence.push_back(c.id);
    steps.push_back(c.step);
    total.push_back(c.schedule.total_steps());
    block_step.push_back(c.schedule.block_step());
    block_steps.push_back(c.schedule.block_steps());
    first.push_back(c.schedule.start());
    quota.push_back(c.schedule.quota());
    for (int64_t i = c.schedule.begin(); pace_ == Pace::timed && i < c.schedule.end(); ++i) {
      if (std::isnan(c.confidence[i])) continue;
      revealed.push_back(now.layout.batch.cu_seqlens[b] + i);
      confidence.push_back(c.confidence[i]);
    }
    cu_revealed.push_back(static_cast<int64_t>(revealed.size()));
  }
  const RowSet revealed_rows = row_set(revealed, std::move(cu_revealed), info_.device);
  const at::Tensor revealed_confidence = at::tensor(confidence, at::kDouble);
  const std::function<std::vector<Predictions>(const std::vector<Ahead>&)> look_ahead =
      [&](const std::vector<Ahead>& wanted) { return this->look_ahead(now, wanted); };
  Cost cost;
  const CountedDenoiser counted(model(), cost);
  const StepContext context{.model = counted,
                            .batch = now.layout.batch,
                            .eligible = now.layout.eligible,
                            .predictions = now.predicted.predictions,
                            .features = now.predicted.features,
                            .forbidden = forbidden_,
                            .waiting = now.layout.waiting,
                            .waiting_entropy = now.waiting_entropy,
                            .context = context_.get(),
                            .states = states_,
                            .cost = cost,
                            .revealed = revealed_rows,
                            .revealed_confidence = revealed_confidence,
                            .place = place,
                            .sequence = sequence,
                            .step = steps,
                            .steps = total,
                            .block_step = block_step,
                            .block_steps = block_steps,
                            .first = first,
                            .quota = quota,
                            .seed = options_.seed,
                            .poll = options_.poll,
                            .look_ahead = look_ahead};
  const auto start = Clock::now();
  const double before = now.record.model_seconds;
  Decision decision = checked(*policy_, policy_->decide(context), n, now.layout.batch.size(),
                              now.layout.batch.rows());
  // A policy that computes gradients spends its time in the model.
  if (cost.forward_rows > 0) now.record.model_seconds = before + seconds_since(start);
  check_numbers(now.record, now.live, now.layout.batch, now.layout.eligible, decision.score,
                kScoreNaN);
  now.record.cost += cost;
  now.record.scored = n;
  if (decision.influence.defined()) {
    now.record.scored = decision.influence.isnan().logical_not().sum().item<int64_t>();
  }
  return decision;
}

void Loop::realise(const Step& now, StepRecord& before) const {
  const auto& cu = now.layout.batch.cu_seqlens;
  for (size_t b = 0; b < now.live.size(); ++b) {
    const Canvas& c = *now.live[b];
    before.realised_fall[c.place] =
        c.expected.fall([&](int64_t position) { return entropy_at(now, cu[b] + position); });
  }
}

double Loop::entropy_at(const Step& now, int64_t row) {
  const auto at = std::lower_bound(now.seen.begin(), now.seen.end(), row);
  return at == now.seen.end() || *at != row ? kNan : now.seen_entropy[at - now.seen.begin()];
}

std::vector<int64_t> Loop::mask_again(Step& now, const std::vector<int64_t>& rows) const {
  std::vector<int64_t> again(now.live.size(), 0), sequence, position;
  const auto& cu = now.layout.batch.cu_seqlens;
  int64_t previous = -1;
  for (const int64_t row : rows) {
    const auto at = std::upper_bound(cu.begin(), cu.end(), row);
    const bool inside = row > previous && row >= 0 && at != cu.end();
    const size_t b = inside ? at - cu.begin() - 1 : 0;
    Canvas& c = *now.live[b];
    const int64_t i = row - cu[b];
    const bool allowed = inside && pace_ == Pace::timed && !c.schedule.last_of_block() &&
                         i >= c.schedule.begin() && i < c.schedule.end() &&
                         !std::isnan(c.confidence[i]);
    if (!allowed) {
      refuse(
          "policy ", policy_->name(), " masks row ", row, " again, which it may not: name rows ",
          "that earlier steps of the block revealed, in order, under Pace::timed and not in the ",
          "last step of a block");
    }
    previous = row;
    c.write(i, info_.mask_token_id);
    c.confidence[i] = kNan;
    ++again[b];
    sequence.push_back(static_cast<int64_t>(c.place));
    position.push_back(i);
  }
  now.record.remasked_sequence = to_tensor(sequence);
  now.record.remasked_position = to_tensor(position);
  return again;
}

int64_t Loop::count_of(const Step& now, const Decision& decision, size_t b) const {
  const auto& cu = now.layout.eligible.cu_rows;
  const Schedule& schedule = now.live[b]->schedule;
  const int64_t all = cu[b + 1] - cu[b];
  if (pace_ == Pace::quota) return schedule.quota();
  if (pace_ == Pace::timed && schedule.last_of_block()) return all;
  const int64_t count = decision.count[b];
  check_count(*policy_, count, least_count(schedule), all);
  return count;
}

std::vector<at::Tensor> Loop::guesses(const Step& now, const int64_t* token) const {
  std::vector<at::Tensor> result;
  for (const Canvas& c : canvases_) {
    result.push_back(at::full({static_cast<int64_t>(c.tokens.size())}, -1, at::kLong));
  }
  for (size_t b = 0; b < now.live.size(); ++b) {
    const Canvas& c = *now.live[b];
    int64_t* guess = result[c.place].data_ptr<int64_t>();
    const auto& cu = now.layout.eligible.cu_rows;
    for (int64_t i = cu[b]; i < cu[b + 1]; ++i) {
      const int64_t position = now.layout.positions[i];
      if (c.tokens[position] == info_.mask_token_id) guess[position] = token[i];
    }
  }
  return result;
}

void Loop::write(Step& now, const Decision& decision) {
  const at::Tensor tokens = now.predicted.predictions.token.to(at::kCPU);
  const at::Tensor confidences =
      now.predicted.predictions.confidence.to(at::kCPU, at::kDouble).contiguous();
  const int64_t* token = tokens.const_data_ptr<int64_t>();
  const double* score = decision.score.const_data_ptr<double>();
  const double* confidence = confidences.const_data_ptr<double>();
  const double* influence =
      decision.influence.defined() ? decision.influence.const_data_ptr<double>() : nullptr;
  const auto& cu = now.layout.eligible.cu_rows;
  const std::vector<int64_t>& positions = now.layout.positions;
  const auto ends_text = [&](int64_t row) {
    const auto& eos = info_.eos_token_ids;
    return options_.confidence_eos_eot_inf &&
           std::find(eos.begin(), eos.end(), token[row]) != eos.end();
  };
  const std::vector<int64_t> again = mask_again(now, decision.remask);
  StepRecord& record = now.record;
  std::vector<int64_t> chosen, sequence, position, by_confidence;
  for (size_t b = 0; b < now.live.size(); ++b) {
    Canvas& canvas = *now.live[b];
    std::vector<int64_t> order(cu[b + 1] - cu[b]);
    std::iota(order.begin(), order.end(), cu[b]);
    const auto better = [&](int64_t x, int64_t y) {
      const bool x_last = ends_text(x), y_last = ends_text(y);
      if (x_last != y_last) return y_last;
      return score[x] > score[y] || (score[x] == score[y] && x < y);
    };
    const int64_t count = count_of(now, decision, b);
    std::partial_sort(order.begin(), order.begin() + count, order.end(), better);
    order.resize(count);
    std::sort(order.begin(), order.end());
    const std::vector<int64_t> confident = largest(confidence, cu[b], cu[b + 1], count);
    canvas.expected = {};
    double predicted = 0;
    bool steered = false;
    std::vector<int64_t> written;
    for (const int64_t row : order) {
      by_confidence.push_back(std::binary_search(confident.begin(), confident.end(), row));
      if (influence && !std::isnan(influence[row])) {
        predicted += influence[row];
        steered = true;
      }
      canvas.write(positions[row], token[row]);
      canvas.confidence[positions[row]] = confidence[row];
      written.push_back(positions[row]);
      chosen.push_back(row);
      sequence.push_back(static_cast<int64_t>(canvas.place));
      position.push_back(positions[row]);
    }
    if (steered) {
      record.predicted_fall[canvas.place] = predicted;
      const auto& cu_seqlens = now.layout.batch.cu_seqlens;
      for (const int64_t row : decision.probes) {
        if (row < cu_seqlens[b] || row >= cu_seqlens[b + 1]) continue;
        canvas.expected.positions.push_back(row - cu_seqlens[b]);
        canvas.expected.entropy.push_back(entropy_at(now, row));
      }
    }
    canvas.stale.insert(canvas.stale.end(), written.begin(), written.end());
    canvas.schedule.advance(count, again[b]);
    ++canvas.step;
    canvas.known.reset();
    const auto same = std::find_if(canvas.foreseen.begin(), canvas.foreseen.end(),
                                   [&](const Foreseen& f) { return f.positions == written; });
    if (same != canvas.foreseen.end() && again[b] == 0) canvas.known = std::move(*same);
    canvas.foreseen.clear();
  }
  if (options_.callback) record.guesses = guesses(now, token);
  const at::Tensor rows = to_tensor(chosen);
  record.sequence = to_tensor(sequence);
  record.position = to_tensor(position);
  record.token = tokens.index_select(0, rows);
  record.confidence = confidences.index_select(0, rows);
  record.entropy = now.predicted.entropy.index_select(0, rows);
  record.score = decision.score.index_select(0, rows);
  record.influence =
      influence ? decision.influence.index_select(0, rows) : at::full_like(record.score, kNan);
  record.by_confidence = to_tensor(by_confidence).to(at::kBool);
}

}  // namespace tabes
