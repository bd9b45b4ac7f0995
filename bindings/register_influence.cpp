#include <pybind11/stl.h>

#include <sstream>

#include "python_policy.h"
#include "records.h"
#include "tabes/boe.h"
#include "tabes/error.h"
#include "tabes/influence.h"

namespace tabes::python {
namespace {

namespace py = pybind11;

// Python's help; the stub has the same text.
constexpr const char* kBoEDoc =
    R"doc(Backward-on-entropy steering (TABES, arXiv 2602.00250): candidates whose revealing most
lowers the entropy of what stays masked come first.

A candidate's score is ``gamma * log(c) + weight * TIS``, less
``anti_collapse * max(0, h_t - H)**2`` with ``h_t = h_max * steps_left / steps``; c is its
confidence, H its entropy in nats, TIS its token influence score: how much a draft of all
candidates agrees with itself because of this one. Entropy falls no further than to 0: where
positive scores of a sequence add up to more than the probes' entropy, all are scaled down to
it. Rows that `factor` accepts come first, rows that are no candidates last, by confidence. A
step that the gradient could not change is ordered by confidence at no cost. With weight=0 all
are.

Args:
    n_candidates: how many rows get a score each step: a number of rows, or a multiple of the
        rows the step reveals, as "3x".
    prefilter: which they are: the eligible rows first by "confidence" or by "margin".
    alpha: where between mask (0) and prediction (1) the entropy is differentiated; the
        gradients of several points are averaged. The paper's point is 1.
    draft: what a candidate is taken to become: the "token" that would be written, or the
        "expected" embedding, the mean over its distribution, as in the paper.
    tau: temperature of that distribution; 0: the embedding of the likeliest token.
    rule: "nats", as above, or "product", the paper's: ``c**gamma * minmax(TIS)`` in its place,
        with TIS as it is.
    gamma: factor of the confidence's logarithm, or its exponent.
    weight: of the influence, with rule "nats".
    factor: above 0: rows that Fast-dLLM's factor rule accepts with this f are revealed in any
        case, unsteered, and may be more than the schedule's quota; the rest is steered.
    spread: rows of one step that stand close together depend on one another; each row picked
        takes ``spread * exp(-distance / spread_width)`` from the scores of the others.
    spread_width: of that, in positions.
    anti_collapse: weight of the penalty on rows that are certain too early.
    h_max: the entropy floor of that penalty at the first step, in nats.
    probes: whose entropy counts: the "candidates" themselves, or other masked rows, those first
        that are "least_entropic", "most_entropic", "random" or "nearest" (to a candidate).
    rho: at most ceil(rho * L) such other rows, L being the length of the whole sequence.
    halo: rows this close to a candidate or probe are active as well.
    context: "frozen": inactive rows keep the keys and values of the step's forward pass;
        "exact": a full surrogate forward pass, as in the paper.
    adjoint: "active": ActiveQueryAttention; "dense": the ordinary gradient.
    every: steer each sequence's every n-th step.
    min_masked: stop steering a sequence with fewer eligible rows.

Defaults: n_candidates="2x", prefilter="confidence", alpha=0.5, draft="token", tau=1.0,
rule="nats", gamma=1.0, weight=1.0, factor=1.0, spread=3.0, spread_width=3.0,
anti_collapse=0.0, h_max=0.3, probes="candidates", rho=1.0, halo=0, context="frozen",
adjoint="active", every=1, min_masked=0.

Raises InputError for a value of the wrong kind or out of range, and for an unknown name.)doc";

BoEOptions boe_options(const py::args& positional, const py::kwargs& given) {
  if (!positional.empty()) {
    throw InputError("BoE takes its settings by name: BoE(n_candidates=...)");
  }
  return BoEOptions().with(policy_settings(given));
}

// What the class's help says of a setting.
std::string help_of(const std::string& setting) {
  const std::string help(kBoEDoc);
  const std::string head = "\n    " + setting + ": ";
  const size_t from = help.find(head);
  TORCH_INTERNAL_ASSERT(from != std::string::npos, "no help for ", setting);
  std::string text;
  std::istringstream lines(help.substr(from + head.size()));
  for (std::string line;
       std::getline(lines, line) && (text.empty() || line.starts_with("        "));) {
    text += (text.empty() ? "" : " ") + line.substr(text.empty() ? 0 : 8);
  }
  return text;
}

}  // namespace

void register_influence(py::module_& m) {
  py::class_<Influence> scores(m, "Influence", "Token influence scores, from `tabes.influence`.");
  def_record(
      scores,
      Field{"tis", &Influence::tis,
            "A float64 tensor [candidates] for every sequence, in the candidates' order: in nats, "
            "the\nfirst-order fall of the probes' summed entropy when that candidate is revealed."},
      Field{"entropy", &Influence::entropy,
            "For every sequence the probes' summed entropy in nats, as it is."},
      Field{"scale", &Influence::scale,
            "For every sequence what its scores are to be multiplied by so that the falls add "
            "up to\nno more than `entropy`; at most 1. The rule \"nats\" of `tabes.BoE` does so."},
      Field{"predicted_entropy", &Influence::predicted_entropy,
            "For every sequence the probes' summed entropy in nats, with the candidates written as "
            "far\nas alpha says; the mean over its points."},
      Field{"cost", &Influence::cost, "Token rows through the model, the base pass among them."});
  scores.def("__repr__", [](const Influence& i) {
    int64_t candidates = 0;
    for (const at::Tensor& tis : i.tis) candidates += tis.numel();
    return "Influence(" + std::to_string(i.tis.size()) + " sequences, " +
           std::to_string(candidates) + " candidates, " + std::to_string(i.cost.forward_rows) +
           " forward and " + std::to_string(i.cost.backward_rows) + " backward rows)";
  });

  m.def(
      "influence",
      [](const Denoiser& model, const std::vector<at::Tensor>& sequences,
         const std::vector<std::vector<int64_t>>& candidates,
         const std::vector<std::vector<int64_t>>& probes, std::vector<double> alpha, double tau,
         int64_t halo, const std::string& context, const std::string& adjoint,
         std::vector<int64_t> forbidden, bool allow_special) {
        InfluenceOptions options;
        options.alpha = std::move(alpha);
        options.tau = tau;
        options.halo = halo;
        options.context = context_kind(context);
        options.adjoint = adjoint_kind(adjoint);
        options.forbidden = std::move(forbidden);
        options.allow_special = allow_special;
        options.poll = signal_poll();
        const py::gil_scoped_release unlocked;
        return influence(model, sequences, candidates, probes, options);
      },
      py::arg("model"), py::arg("sequences"), py::arg("candidates"), py::arg("probes"),
      py::arg("alpha"), py::arg("tau"), py::arg("halo"), py::arg("context"), py::arg("adjoint"),
      py::arg("forbidden"), py::arg("allow_special") = false);

  m.def(
      "one_step_fall",
      [](const Denoiser& model, const std::vector<at::Tensor>& sequences,
         const std::vector<std::vector<int64_t>>& candidates,
         const std::vector<std::vector<int64_t>>& probes, const std::vector<int64_t>& forbidden,
         bool allow_special) {
        const auto poll = signal_poll();
        const py::gil_scoped_release unlocked;
        return one_step_fall(model, sequences, candidates, probes, forbidden, allow_special, poll)
            .fall;
      },
      py::arg("model"), py::arg("sequences"), py::arg("candidates"), py::arg("probes"),
      py::arg("forbidden"), py::arg("allow_special") = false);

  py::class_<BoE, Policy, PythonPolicy<BoE>, py::smart_holder> boe(m, "BoE", kBoEDoc);
  boe.def(py::init(
              [](const py::args& none, const py::kwargs& given) {
                return std::make_unique<BoE>(boe_options(none, given));
              },
              [](const py::args& none, const py::kwargs& given) {
                return std::make_unique<PythonPolicy<BoE>>(BoE(boe_options(none, given)));
              }),
          "Settings by name; those not given keep their defaults.")
      .def_static(
          "paper", [] { return std::make_unique<BoE>(BoEOptions::paper()); },
          "The settings of the paper: alpha = 1, exact context, most entropic probes.");
  const auto settings = BoEOptions().settings();
  for (size_t i = 0; i < settings.size(); ++i) {
    boe.def_property_readonly(
        settings[i].first.c_str(),
        [i](const BoE& policy) { return setting_object(policy.options().settings()[i].second); },
        help_of(settings[i].first).c_str());
  }
}

}  // namespace tabes::python
