// How a decode looks at its model: full passes, frozen ones, and passes ahead.
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "decode/loop.h"
#include "messages.h"
#include "ops/ops.h"

namespace tabes {
namespace {

Predictions narrow(const Predictions& p, int64_t from, int64_t count) {
  const auto part = [&](const at::Tensor& t) { return t.narrow(0, from, count); };
  return {part(p.token), part(p.confidence), part(p.max_prob), part(p.margin), part(p.entropy)};
}

Predictions joined(const std::vector<Predictions>& parts) {
  const auto join = [&](at::Tensor Predictions::* field) {
    std::vector<at::Tensor> tensors;
    for (const Predictions& p : parts) tensors.push_back(p.*field);
    return at::cat(tensors);
  };
  return {join(&Predictions::token), join(&Predictions::confidence), join(&Predictions::max_prob),
          join(&Predictions::margin), join(&Predictions::entropy)};
}

}  // namespace

void Loop::look(Step& now) {
  std::vector<int64_t> steps;
  for (const Canvas* c : now.live) steps.push_back(c->step);
  const bool keep_context = options_.refresh_every != 1 || policy_->wants_context(steps);
  const auto& cu = now.layout.eligible.cu_rows;
  bool all = true;
  for (size_t b = 0; b < now.live.size(); ++b) {
    if (keep_context) now.live[b]->known.reset();
    all = all && !now.live[b]->known && cu[b] < cu[b + 1];
  }
  // In a frozen context every step is a pass over all sequences, even if it has nothing to write:
  // which steps are full ones must not depend on what else is in the batch.
  if (all || keep_context) {
    look_at_all(now, keep_context);
  } else {
    look_at_new(now);
  }
}

bool Loop::follow_context(const std::vector<Canvas*>& live) {
  if (!may_freeze()) return false;
  std::vector<int64_t> rows;
  size_t next = 0;
  for (const Canvas* c : live) {
    while (context_places_[next] != c->place) ++next;
    for (int64_t i = context_cu_seqlens_[next]; i < context_cu_seqlens_[next + 1]; ++i) {
      rows.push_back(i);
    }
  }
  if (live.size() < context_places_.size()) context_->select(to_tensor(rows, info_.device));
  return true;
}

void Loop::look_at_all(Step& now, bool keep_context) {
  const Layout& layout = now.layout;
  std::vector<char> is_waiting(layout.eligible.count(), 0);
  const RowSet wanted = layout.waiting.count() > 0
                            ? merged(layout.eligible, layout.waiting, &is_waiting)
                            : layout.eligible;
  const PredictRequest request{.batch = layout.batch,
                               .rows = wanted,
                               .forbidden = forbidden_,
                               .options = options_,
                               .keep_context = keep_context};
  std::optional<RowSet> active;
  if (keep_context && follow_context(now.live)) {
    active = active_rows(now.live, layout.batch, wanted, info_);
  }
  now.predicted = in_context(request, active, [&](const PredictRequest& pass) {
    return forward(now.live, pass, now.record);
  });
  context_places_.clear();
  for (Canvas* c : now.live) {
    context_places_.push_back(c->place);
    c->stale.clear();
  }
  context_cu_seqlens_ = layout.batch.cu_seqlens;

  const double* entropy = now.predicted.entropy.const_data_ptr<double>();
  const at::Tensor rows = wanted.on_host();
  now.seen.assign(rows.const_data_ptr<int64_t>(), rows.const_data_ptr<int64_t>() + rows.numel());
  now.seen_entropy.assign(entropy, entropy + rows.numel());
  if (layout.waiting.count() == 0) return;
  std::vector<int64_t> first, second;
  for (size_t i = 0; i < is_waiting.size(); ++i) {
    (is_waiting[i] ? second : first).push_back(static_cast<int64_t>(i));
  }
  const at::Tensor own = to_tensor(first, info_.device);
  Predictions& p = now.predicted.predictions;
  now.waiting_entropy = p.entropy.index_select(0, to_tensor(second, info_.device));
  const auto select = [&](const at::Tensor& t) { return t.index_select(0, own); };
  p = {select(p.token), select(p.confidence), select(p.max_prob), select(p.margin),
       select(p.entropy)};
  now.predicted.features = select(now.predicted.features);
  now.predicted.entropy = now.predicted.entropy.index_select(0, to_tensor(first));
}

PredictRequest Loop::at_eligible(const Layout& layout) const {
  return {
      .batch = layout.batch, .rows = layout.eligible, .forbidden = forbidden_, .options = options_};
}

void Loop::look_at_new(Step& now) {
  const auto& cu = now.layout.eligible.cu_rows;
  std::vector<Canvas*> fresh;
  for (size_t b = 0; b < now.live.size(); ++b) {
    if (!now.live[b]->known && cu[b] < cu[b + 1]) fresh.push_back(now.live[b]);
  }
  const Layout layout = lay_out(fresh, info_, false);
  Predicted seen;
  if (!fresh.empty()) {
    seen = forward(fresh, at_eligible(layout), now.record);
  }
  std::vector<Predictions> parts;
  std::vector<at::Tensor> features;
  for (size_t b = 0, next = 0; b < now.live.size(); ++b) {
    if (now.live[b]->known) {
      parts.push_back(now.live[b]->known->predictions);
      features.push_back(now.live[b]->known->features);
    } else if (cu[b] < cu[b + 1]) {
      const int64_t from = layout.eligible.cu_rows[next++];
      parts.push_back(narrow(seen.predictions, from, cu[b + 1] - cu[b]));
      features.push_back(seen.features.narrow(0, from, cu[b + 1] - cu[b]));
    }
  }
  if (parts.empty()) {  // every sequence waits for its steps to end
    now.predicted.predictions = no_predictions(info_.device);
    now.predicted.features = at::empty({0, 1}, at::TensorOptions(info_.device).dtype(at::kFloat));
  } else {
    now.predicted.predictions = joined(parts);
    now.predicted.features = at::cat(features);
  }
  now.predicted.entropy = now.predicted.predictions.entropy.to(at::kCPU, at::kDouble);
}

Predicted Loop::forward(const std::vector<Canvas*>& canvases, PredictRequest request,
                        StepRecord& record, const char* bad_logits) const {
  const PackedBatch& batch = request.batch;
  const int64_t n = request.rows.count();
  const int64_t passes = options_.cfg_scale > 0 ? 2 : 1;
  PackedBatch unguided;
  if (options_.cfg_scale > 0) {
    std::vector<const HostTokens*> without;
    for (const Canvas* c : canvases) without.push_back(&c->unguided);
    unguided = pack(without, info_.device);
    request.unguided = &unguided;
  }
  if (options_.temperature > 0) {
    std::vector<int64_t> sequences, positions, steps;
    const at::Tensor rows = request.rows.on_host();
    const int64_t* row = rows.const_data_ptr<int64_t>();
    for (size_t b = 0; b < canvases.size(); ++b) {
      for (int64_t i = request.rows.cu_rows[b]; i < request.rows.cu_rows[b + 1]; ++i) {
        sequences.push_back(canvases[b]->id);
        positions.push_back(row[i] - batch.cu_seqlens[b]);
        steps.push_back(canvases[b]->step);
      }
    }
    request.uniforms = ops::counter_uniforms(
        to_tensor(sequences, info_.device), to_tensor(positions, info_.device),
        to_tensor(steps, info_.device), options_.seed, Stream::token);
  }
  const auto start = std::chrono::steady_clock::now();
  Predicted predicted = predict(model(), request);
  predicted.entropy = predicted.predictions.entropy.to(at::kCPU, at::kDouble);
  record.model_seconds +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  record.cost.forward_rows += request.active ? request.active->count() : passes * batch.rows();
  record.cost.head_rows += passes * n;
  check_numbers(record, canvases, batch, request.rows, predicted.entropy, bad_logits);
  return predicted;
}

std::vector<Predictions> Loop::look_ahead(Step& now, const std::vector<Ahead>& wanted) const {
  if (wanted.empty()) return {};
  const auto& cu = now.layout.eligible.cu_rows;
  const at::Tensor token = now.predicted.predictions.token.to(at::kCPU);
  std::vector<Canvas> ahead;
  ahead.reserve(wanted.size());
  std::vector<Canvas*> pointers;
  std::vector<std::vector<int64_t>> positions;
  for (const Ahead& a : wanted) {
    const size_t b = a.sequence;
    const bool known = b < now.live.size() && !a.reveal.empty() &&
                       std::is_sorted(a.reveal.begin(), a.reveal.end()) &&
                       a.reveal.front() >= cu[b] && a.reveal.back() < cu[b + 1];
    if (!known || static_cast<int64_t>(a.reveal.size()) >= cu[b + 1] - cu[b]) {
      refuse("policy ", policy_->name(), " looked ahead at rows that it may not reveal, or at all",
             " of them; name some eligible rows of one sequence in order");
    }
    ahead.push_back(*now.live[b]);
    Canvas& c = ahead.back();
    positions.emplace_back();
    for (const int64_t row : a.reveal) {
      c.write(now.layout.positions[row], token.const_data_ptr<int64_t>()[row]);
      positions.back().push_back(now.layout.positions[row]);
    }
    ++c.step;
    pointers.push_back(&c);
  }
  const Layout layout = lay_out(pointers, info_, false);
  const std::string bad_logits = text("looking ahead, ", kBadLogits);
  const Predicted seen = forward(pointers, at_eligible(layout), now.record, bad_logits.c_str());
  std::vector<Predictions> result;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const int64_t from = layout.eligible.cu_rows[i];
    const int64_t count = layout.eligible.cu_rows[i + 1] - from;
    result.push_back(narrow(seen.predictions, from, count));
    now.live[wanted[i].sequence]->foreseen.push_back(
        {std::move(positions[i]), result.back(), seen.features.narrow(0, from, count)});
  }
  return result;
}

void Loop::check_numbers(const StepRecord& record, const std::vector<Canvas*>& canvases,
                         const PackedBatch& batch, const RowSet& rows, const at::Tensor& values,
                         const char* what) {
  const double* v = values.const_data_ptr<double>();
  const auto bad = std::find_if(v, v + values.numel(), [](double x) { return std::isnan(x); });
  if (bad == v + values.numel()) return;
  const int64_t i = bad - v;
  const size_t b =
      std::upper_bound(rows.cu_rows.begin(), rows.cu_rows.end(), i) - rows.cu_rows.begin() - 1;
  const int64_t row = rows.on_host().const_data_ptr<int64_t>()[i];
  not_finite(record.step, canvases[b]->place, row - batch.cu_seqlens[b], what);
}

}  // namespace tabes
