#include "model/replayed_transformer.h"

namespace tabes {
namespace {

enum Kind : int64_t { kEncode, kEncodeKept, kActive, kExactGradient, kFrozenGradient };

using Offsets = std::initializer_list<const std::vector<int64_t>*>;

// What a pass depends on besides its inputs' values.
std::vector<int64_t> shape_of(Kind kind, Offsets offsets) {
  std::vector<int64_t> shape{kind};
  for (const std::vector<int64_t>* o : offsets) {
    shape.push_back(static_cast<int64_t>(o->size()));
    shape.insert(shape.end(), o->begin(), o->end());
  }
  return shape;
}

}  // namespace

class ReplayedTransformer final : public ReplayedDenoiser {
 public:
  // The graphs are acquired.
  ReplayedTransformer(const Transformer& model, TransformerReplay& replay)
      : model_(model), replay_(replay), replays_before_(replay.graphs.replayed()) {}
  ~ReplayedTransformer() override { replay_.graphs.release(); }

  const ModelInfo& info() const override { return model_.info(); }
  at::Tensor embedding_table() const override { return model_.embedding_table(); }
  bool keeps_context() const override { return true; }
  at::Tensor project(const at::Tensor& features) const override { return model_.project(features); }
  at::Tensor project_columns(const at::Tensor& features, int64_t from,
                             int64_t count) const override {
    return model_.project_columns(features, from, count);
  }
  bool projects_columns() const override { return model_.projects_columns(); }
  int64_t replays() const override { return replay_.graphs.replayed() - replays_before_; }
  void forget() override {
    replay_.graphs.forget();
    if (!replay_.owner.lock()) replay_.memory.kv.clear();
  }

  at::Tensor encode(const PackedBatch& batch, const RowSet& rows, const Poll& poll,
                    std::unique_ptr<Context>* kept) const override {
    if (poll) poll();
    std::unique_ptr<FrozenContext> context;
    if (kept) {
      context = fixed(batch.rows());
      if (!context) return model_.encode(batch, rows, poll, kept);
    }
    const auto results = replay_.graphs.run(
        shape_of(kept ? kEncodeKept : kEncode, {&batch.cu_seqlens, &rows.cu_rows}),
        {batch.tokens, rows.rows}, [&](const Tensors& in) -> Tensors {
          return {model_.encode_into({in[0], batch.cu_seqlens}, {in[1], rows.cu_rows}, {},
                                     context.get())};
        });
    if (kept) *kept = std::move(context);
    return results[0];
  }

  at::Tensor encode_active(const PackedBatch& batch, const RowSet& active, const RowSet& rows,
                           Context& context, const Poll& poll) const override {
    if (poll) poll();
    if (!make_fixed(context, batch.rows())) {
      return model_.encode_active(batch, active, rows, context, poll);
    }
    std::vector<int64_t> shape =
        shape_of(kActive, {&batch.cu_seqlens, &active.cu_rows, &rows.cu_rows});
    shape.push_back(active.valid.defined());
    auto& frozen = static_cast<FrozenContext&>(context);
    const PassGraphs::Work work = [&](const Tensors& in) -> Tensors {
      return {model_.pass_in(frozen, {in[0], batch.cu_seqlens}, {in[1], active.cu_rows, in[3]},
                             {in[2], rows.cu_rows}, {})};
    };
    return in_context(&frozen, shape, {batch.tokens, active.rows, rows.rows, active.valid},
                      work)[0];
  }

  EntropyGradient entropy_gradient(const GradientRequest& r) const override {
    if (r.poll) r.poll();
    if (r.frozen && !make_fixed(*r.frozen, r.batch.rows())) return model_.entropy_gradient(r);
    std::vector<int64_t> shape = shape_of(
        r.frozen ? kFrozenGradient : kExactGradient,
        {&r.batch.cu_seqlens, &r.active.cu_rows, &r.candidates.cu_rows, &r.probes.cu_rows});
    shape.push_back(r.forbidden.numel());
    for (const at::Tensor* t : {&r.weight, &r.active.valid, &r.candidates.valid}) {
      shape.push_back(t->defined());
    }
    EntropyGradient result;
    const auto numbers = in_context(
        static_cast<FrozenContext*>(r.frozen), shape,
        {r.batch.tokens, r.active.rows, r.candidates.rows, r.probes.rows, r.offset, r.weight,
         r.forbidden, r.active.valid, r.candidates.valid},
        [&](const Tensors& in) -> Tensors {
          const PackedBatch batch{in[0], r.batch.cu_seqlens};
          const RowSet active{in[1], r.active.cu_rows, in[7]},
              candidates{in[2], r.candidates.cu_rows, in[8]}, probes{in[3], r.probes.cu_rows};
          const EntropyGradient g = model_.entropy_gradient(
              {batch, active, candidates, probes, in[4], in[5], in[6], r.frozen});
          return {g.gradient, g.entropy};
        });
    result.gradient = numbers[0];
    result.entropy = numbers[1];
    count_rows(r, result);
    return result;
  }

 private:
  using Tensors = PassGraphs::Tensors;

  // Runs a pass; what fails in a context spoils it.
  Tensors in_context(FrozenContext* context, const std::vector<int64_t>& shape,
                     const Tensors& inputs, const PassGraphs::Work& work) const {
    try {
      return replay_.graphs.run(shape, inputs, work);
    } catch (...) {
      if (context) context->spoil();
      throw;
    }
  }

  // The fixed memory's first rows as a context; null while another context has them.
  std::unique_ptr<FrozenContext> fixed(int64_t rows) const {
    if (replay_.owner.lock()) return nullptr;
    FrozenContext& memory = replay_.memory;
    if (memory.kv.empty() || memory.kv[0].size(0) < rows) {
      replay_.graphs.forget();  // which work on the old memory
      memory.kv.clear();
      memory = model_.empty_context(rows);
    }
    auto context = std::make_unique<FrozenContext>();
    for (const at::Tensor& kv : memory.kv) context->kv.push_back(kv.narrow(0, 0, rows));
    replay_.owner = context->fixed = std::make_shared<const char>();
    return context;
  }

  // Moves a context there; false while another one has it.
  bool make_fixed(Context& given, int64_t rows) const {
    auto* known = dynamic_cast<FrozenContext*>(&given);
    if (!known || known->kv.empty() || known->kv[0].size(0) < rows) {
      return false;  // which the model itself refuses
    }
    FrozenContext& context = *known;
    if (context.fixed) return true;
    const std::unique_ptr<FrozenContext> moved = fixed(rows);
    if (!moved) return false;
    for (size_t i = 0; i < moved->kv.size(); ++i) {
      moved->kv[i].copy_(context.kv[i].narrow(0, 0, rows));
    }
    context = std::move(*moved);
    return true;
  }

  const Transformer& model_;
  TransformerReplay& replay_;
  const int64_t replays_before_;
};

std::unique_ptr<ReplayedDenoiser> Transformer::replayed() const {
  if (!replay_ || !replay_->graphs.try_acquire()) return nullptr;
  return std::make_unique<ReplayedTransformer>(*this, *replay_);
}

}  // namespace tabes
