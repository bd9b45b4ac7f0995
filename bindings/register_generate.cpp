#include <pybind11/stl.h>

#include "bindings.h"
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

}  // namespace

void register_generate(py::module_& m) {
  py::class_<StepRecord>(m, "StepRecord", "What one step did; see the C++ header generate.h.")
      .def_readonly("step", &StepRecord::step)
      .def_readonly("steps", &StepRecord::steps)
      .def_readonly("masked", &StepRecord::masked)
      .def_readonly("eligible", &StepRecord::eligible)
      .def_readonly("scored", &StepRecord::scored)
      .def_readonly("sequence", &StepRecord::sequence)
      .def_readonly("position", &StepRecord::position)
      .def_readonly("token", &StepRecord::token)
      .def_readonly("confidence", &StepRecord::confidence)
      .def_readonly("entropy", &StepRecord::entropy)
      .def_readonly("score", &StepRecord::score)
      .def_readonly("influence", &StepRecord::influence)
      .def_readonly("by_confidence", &StepRecord::by_confidence)
      .def_readonly("remasked_sequence", &StepRecord::remasked_sequence)
      .def_readonly("remasked_position", &StepRecord::remasked_position)
      .def_readonly("guesses", &StepRecord::guesses)
      .def_readonly("predicted_fall", &StepRecord::predicted_fall)
      .def_readonly("realised_fall", &StepRecord::realised_fall)
      .def_readonly("forward_rows", &StepRecord::forward_rows)
      .def_readonly("backward_rows", &StepRecord::backward_rows)
      .def_readonly("head_rows", &StepRecord::head_rows)
      .def_readonly("seconds", &StepRecord::seconds)
      .def_readonly("model_seconds", &StepRecord::model_seconds);

  py::class_<GenerateResult>(m, "GenerateResult")
      .def_readonly("tokens", &GenerateResult::tokens)
      .def_readonly("trace", &GenerateResult::trace)
      .def_readonly("finished", &GenerateResult::finished)
      .def_readonly("forward_rows", &GenerateResult::forward_rows)
      .def_readonly("backward_rows", &GenerateResult::backward_rows)
      .def_readonly("head_rows", &GenerateResult::head_rows)
      .def_readonly("forward_equivalents", &GenerateResult::forward_equivalents)
      .def_readonly("replayed_passes", &GenerateResult::replayed_passes)
      .def_readonly("seconds", &GenerateResult::seconds);

  py::class_<GenerateOptions>(m, "GenerateOptions", "See the C++ header generate.h.")
      .def(py::init<>())
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
