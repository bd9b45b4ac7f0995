#include <pybind11/stl.h>

#include "records.h"
#include "tabes/generate.h"

namespace tabes::python {
namespace {

namespace py = pybind11;

// A Python callable as a step callback: only False stops, so that returning nothing does not.
StepCallback step_callback(const py::object& callable) {
  if (callable.is_none()) return {};
  return [callable](const StepRecord& record, const std::vector<at::Tensor>& tokens) {
    const py::gil_scoped_acquire locked;
    const py::object answer = callable(record, tokens);
    return !answer.is(py::bool_(false));
  };
}

int64_t entries(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.numel() : 0;
}

}  // namespace

void register_generate(py::module_& m) {
  py::class_<StepRecord> record(m, "StepRecord",
                                "What one step did.\n\n"
                                "Dimensions: B sequences of the batch, L positions of a sequence, "
                                "k tokens that were revealed, "
                                "by\nsequence and position. Tensors are on the CPU.");
  def_record(
      record, Field{"step", &StepRecord::step, "Number of the step, from 0."},
      Field{"steps", &StepRecord::steps, "How many there will be at most."},
      Field{"masked", &StepRecord::masked,
            "B numbers: masked positions of every sequence before the step."},
      Field{"eligible", &StepRecord::eligible,
            "B numbers: of these, how many could be revealed; the others are in later blocks."},
      Field{"scored", &StepRecord::scored,
            "Rows whose influence was computed; without a gradient all that were eligible."},
      Field{"sequence", &StepRecord::sequence, "int64 [k]: the sequence of each revealed token."},
      Field{"position", &StepRecord::position, "int64 [k]: its position there."},
      Field{"token", &StepRecord::token, "int64 [k]: the token."},
      Field{"confidence", &StepRecord::confidence, "float64 [k]: its probability."},
      Field{"entropy", &StepRecord::entropy,
            "float64 [k], nats: entropy of the prediction that it was taken from."},
      Field{"score", &StepRecord::score, "float64 [k]: what the policy gave it."},
      Field{"influence", &StepRecord::influence,
            "float64 [k], nats: its token influence score, NaN where it was not computed."},
      Field{"by_confidence", &StepRecord::by_confidence,
            "bool [k]: whether confidence alone would have revealed it as well."},
      Field{"remasked_sequence", &StepRecord::remasked_sequence,
            "int64 [m]: sequences of the positions that the step masked again."},
      Field{"remasked_position", &StepRecord::remasked_position, "int64 [m]: those positions."},
      Field{"guesses", &StepRecord::guesses,
            "B tensors int64 [L]: what would be written now at positions that stay masked, -1 at "
            "all\nothers; an empty list without a callback."},
      Field{"predicted_fall", &StepRecord::predicted_fall,
            "B numbers, nats: the influence of the revealed rows together; NaN: not steered."},
      Field{"realised_fall", &StepRecord::realised_fall,
            "B numbers, nats: how far the probes' summed entropy fell by the next step's forward "
            "pass;\nNaN: not steered, or there is none yet."},
      Field{"cost", &StepRecord::cost, "Token rows through the model, all passes counted."},
      Field{"seconds", &StepRecord::seconds, "Wall-clock time of the step."},
      Field{
          "model_seconds", &StepRecord::model_seconds,
          "Of it, seconds inside the model and its statistics; NaN where the host does not see."});
  record.def("__repr__", [](const StepRecord& r) {
    std::string text = "StepRecord(step " + std::to_string(r.step + 1) + " of " +
                       std::to_string(r.steps) + ": " + std::to_string(entries(r.position)) +
                       " revealed";
    if (entries(r.remasked_position) > 0) {
      text += ", " + std::to_string(entries(r.remasked_position)) + " masked again";
    }
    text += ", " + std::to_string(r.cost.forward_rows) + " forward";
    if (r.cost.backward_rows > 0)
      text += " and " + std::to_string(r.cost.backward_rows) + " backward";
    return text + " rows)";
  });

  py::class_<GenerateResult> result(m, "GenerateResult");
  def_protocol(result);
  def_field(result, Field{"cost", &GenerateResult::cost,
                          "Token rows through the model, all passes counted."});
  result.def_readonly("tokens", &GenerateResult::tokens)
      .def_readonly("trace", &GenerateResult::trace)
      .def_readonly("finished", &GenerateResult::finished)
      .def_readonly("forward_equivalents", &GenerateResult::forward_equivalents)
      .def_readonly("replayed_passes", &GenerateResult::replayed_passes)
      .def_readonly("seconds", &GenerateResult::seconds);

  py::class_<GenerateOptions> options(m, "GenerateOptions", "See the C++ header generate.h.");
  def_protocol(options);
  options.def(py::init<>())
      .def_readwrite("steps", &GenerateOptions::steps)
      .def_readwrite("block_length", &GenerateOptions::block_length)
      .def_readwrite("refresh_every", &GenerateOptions::refresh_every)
      .def_property(
          "policy",
          [](const GenerateOptions& o) { return std::const_pointer_cast<Policy>(o.policy); },
          [](GenerateOptions& o, std::shared_ptr<Policy> policy) { o.policy = std::move(policy); })
      .def_readwrite("temperature", &GenerateOptions::temperature)
      .def_readwrite("top_k", &GenerateOptions::top_k)
      .def_readwrite("top_p", &GenerateOptions::top_p)
      .def_readwrite("cfg_scale", &GenerateOptions::cfg_scale)
      .def_readwrite("seed", &GenerateOptions::seed)
      .def_readwrite("sequence_ids", &GenerateOptions::sequence_ids)
      .def_readwrite("forbidden", &GenerateOptions::forbidden)
      .def_readwrite("allow_special", &GenerateOptions::allow_special)
      .def_readwrite("on_device", &GenerateOptions::on_device)
      .def_readwrite("cuda_graphs", &GenerateOptions::cuda_graphs)
      .def_readwrite("logits_eos_inf", &GenerateOptions::logits_eos_inf)
      .def_readwrite("confidence_eos_eot_inf", &GenerateOptions::confidence_eos_eot_inf);

  m.def(
      "generate",
      [](const Denoiser& model, const std::vector<at::Tensor>& sequences,
         const GenerateOptions& given, const py::object& callback) {
        // Copied while the interpreter lock is held, since the copy may own Python objects.
        GenerateOptions options = given;
        options.callback = step_callback(callback);
        options.poll = signal_poll();
        const py::gil_scoped_release unlocked;
        return generate(model, sequences, options);
      },
      py::arg("model"), py::arg("sequences"), py::arg("options"), py::arg("callback") = py::none());
  m.def("with_masks", &with_masks, py::arg("model"), py::arg("prompt"), py::arg("gen_length"));
}

}  // namespace tabes::python
