#include <pybind11/stl.h>

#include <charconv>
#include <sstream>
#include <variant>

#include "bindings.h"
#include "tabes/boe.h"
#include "tabes/error.h"
#include "tabes/influence.h"

namespace tabes::python {
namespace {

namespace py = pybind11;

template <typename Value>
struct Name {
  const char* name;
  Value value;
};

constexpr Name<ContextKind> kContexts[] = {{"exact", ContextKind::exact},
                                           {"frozen", ContextKind::frozen}};
constexpr Name<AdjointKind> kAdjoints[] = {{"active", AdjointKind::active},
                                           {"dense", AdjointKind::dense}};
constexpr Name<ScoreRule> kScoreRules[] = {{"product", ScoreRule::product},
                                           {"nats", ScoreRule::nats}};
constexpr Name<Prefilter> kPrefilters[] = {{"confidence", Prefilter::confidence},
                                           {"margin", Prefilter::margin}};
constexpr Name<ProbeRule> kProbeRules[] = {{"least_entropic", ProbeRule::least_entropic},
                                           {"most_entropic", ProbeRule::most_entropic},
                                           {"random", ProbeRule::random},
                                           {"nearest", ProbeRule::nearest}};

template <typename Value, size_t n>
Value named(const Name<Value> (&names)[n], const std::string& what, const std::string& name) {
  std::string known;
  for (const auto& entry : names) {
    if (name == entry.name) return entry.value;
    known += std::string(known.empty() ? "" : ", ") + entry.name;
  }
  throw InputError(what + " '" + name + "' is unknown; known are " + known);
}

template <typename Value, size_t n>
const char* name_of(const Name<Value> (&names)[n], Value value) {
  for (const auto& entry : names) {
    if (entry.value == value) return entry.name;
  }
  return "?";
}

using Points = std::variant<double, std::vector<double>>;

std::vector<double> points(Points alpha) {
  if (const double* one = std::get_if<double>(&alpha)) return {*one};
  return std::get<std::vector<double>>(std::move(alpha));
}

// A number of rows, or "3x" for three times the rows the step reveals.
using Count = std::variant<int64_t, std::string>;

void set_candidates(BoEOptions& options, const Count& count) {
  if (const int64_t* rows = std::get_if<int64_t>(&count)) {
    options.n_candidates = static_cast<double>(*rows);
    options.per_quota = false;
    return;
  }
  const std::string& written = std::get<std::string>(count);
  const char* end = nullptr;
  double multiple = 0;
  if (!written.empty() && written.back() == 'x') {
    const auto parsed =
        std::from_chars(written.data(), written.data() + written.size() - 1, multiple);
    if (parsed.ec == std::errc()) end = parsed.ptr;
  }
  if (end != written.data() + written.size() - 1) {
    throw InputError("n_candidates '" + written +
                     "' is neither a number of rows nor a multiple of the quota such as '3x'");
  }
  options.n_candidates = multiple;
  options.per_quota = true;
}

Count candidates_of(const BoEOptions& options) {
  if (!options.per_quota) return static_cast<int64_t>(options.n_candidates);
  std::ostringstream out;
  out << options.n_candidates << 'x';
  return out.str();
}

}  // namespace

void register_influence(py::module_& m) {
  py::class_<Influence>(m, "Influence", "Token influence scores; see the C++ header influence.h.")
      .def_readonly("tis", &Influence::tis)
      .def_readonly("predicted_entropy", &Influence::predicted_entropy)
      .def_readonly("forward_rows", &Influence::forward_rows)
      .def_readonly("backward_rows", &Influence::backward_rows)
      .def_readonly("head_rows", &Influence::head_rows);

  m.def(
      "influence",
      [](const Denoiser& model, const std::vector<at::Tensor>& sequences,
         const std::vector<std::vector<int64_t>>& candidates,
         const std::vector<std::vector<int64_t>>& probes, Points alpha, double tau, int64_t halo,
         const std::string& context, const std::string& adjoint, std::vector<int64_t> forbidden) {
        InfluenceOptions options;
        options.alpha = points(std::move(alpha));
        options.tau = tau;
        options.halo = halo;
        options.context = named(kContexts, "context", context);
        options.adjoint = named(kAdjoints, "adjoint", adjoint);
        options.forbidden = std::move(forbidden);
        options.poll = signal_poll();
        const py::gil_scoped_release unlocked;
        return influence(model, sequences, candidates, probes, options);
      },
      py::arg("model"), py::arg("sequences"), py::arg("candidates"), py::arg("probes"),
      py::arg("alpha"), py::arg("tau"), py::arg("halo"), py::arg("context"), py::arg("adjoint"),
      py::arg("forbidden"));

  m.def(
      "one_step_fall",
      [](const Denoiser& model, const std::vector<at::Tensor>& sequences,
         const std::vector<std::vector<int64_t>>& candidates,
         const std::vector<std::vector<int64_t>>& probes, const std::vector<int64_t>& forbidden) {
        const auto poll = signal_poll();
        const py::gil_scoped_release unlocked;
        return one_step_fall(model, sequences, candidates, probes, forbidden, poll).fall;
      },
      py::arg("model"), py::arg("sequences"), py::arg("candidates"), py::arg("probes"),
      py::arg("forbidden"));

  const BoEOptions d;
  py::class_<BoE, Policy, py::smart_holder>(m, "BoE", "See the C++ header boe.h.")
      .def(py::init([](const Count& n_candidates, const std::string& prefilter, Points alpha,
                       double tau, double gamma, double anti_collapse, double h_max, double rho,
                       const std::string& probes, int64_t halo, const std::string& context,
                       const std::string& adjoint, int64_t every, int64_t min_masked,
                       const std::string& rule, double weight, double entropy_budget) {
             BoEOptions o;
             set_candidates(o, n_candidates);
             o.prefilter = named(kPrefilters, "prefilter", prefilter);
             o.alpha = points(std::move(alpha));
             o.tau = tau;
             o.gamma = gamma;
             o.anti_collapse = anti_collapse;
             o.h_max = h_max;
             o.rho = rho;
             o.probes = named(kProbeRules, "probes", probes);
             o.halo = halo;
             o.context = named(kContexts, "context", context);
             o.adjoint = named(kAdjoints, "adjoint", adjoint);
             o.every = every;
             o.min_masked = min_masked;
             o.rule = named(kScoreRules, "rule", rule);
             o.weight = weight;
             o.entropy_budget = entropy_budget;
             return std::make_shared<BoE>(std::move(o));
           }),
           py::kw_only(), py::arg("n_candidates") = candidates_of(d),
           py::arg("prefilter") = name_of(kPrefilters, d.prefilter), py::arg("alpha") = d.alpha,
           py::arg("tau") = d.tau, py::arg("gamma") = d.gamma,
           py::arg("anti_collapse") = d.anti_collapse, py::arg("h_max") = d.h_max,
           py::arg("rho") = d.rho, py::arg("probes") = name_of(kProbeRules, d.probes),
           py::arg("halo") = d.halo, py::arg("context") = name_of(kContexts, d.context),
           py::arg("adjoint") = name_of(kAdjoints, d.adjoint), py::arg("every") = d.every,
           py::arg("min_masked") = d.min_masked, py::arg("rule") = name_of(kScoreRules, d.rule),
           py::arg("weight") = d.weight, py::arg("entropy_budget") = d.entropy_budget)
      .def_static("paper", [] { return std::make_shared<BoE>(BoEOptions::paper()); })
      .def_property_readonly("n_candidates",
                             [](const BoE& p) { return candidates_of(p.options()); })
      .def_property_readonly(
          "prefilter", [](const BoE& p) { return name_of(kPrefilters, p.options().prefilter); })
      .def_property_readonly("alpha", [](const BoE& p) { return p.options().alpha; })
      .def_property_readonly("tau", [](const BoE& p) { return p.options().tau; })
      .def_property_readonly("gamma", [](const BoE& p) { return p.options().gamma; })
      .def_property_readonly("anti_collapse",
                             [](const BoE& p) { return p.options().anti_collapse; })
      .def_property_readonly("h_max", [](const BoE& p) { return p.options().h_max; })
      .def_property_readonly("rho", [](const BoE& p) { return p.options().rho; })
      .def_property_readonly("probes",
                             [](const BoE& p) { return name_of(kProbeRules, p.options().probes); })
      .def_property_readonly("halo", [](const BoE& p) { return p.options().halo; })
      .def_property_readonly("context",
                             [](const BoE& p) { return name_of(kContexts, p.options().context); })
      .def_property_readonly("adjoint",
                             [](const BoE& p) { return name_of(kAdjoints, p.options().adjoint); })
      .def_property_readonly("every", [](const BoE& p) { return p.options().every; })
      .def_property_readonly("min_masked", [](const BoE& p) { return p.options().min_masked; })
      .def_property_readonly("rule",
                             [](const BoE& p) { return name_of(kScoreRules, p.options().rule); })
      .def_property_readonly("weight", [](const BoE& p) { return p.options().weight; })
      .def_property_readonly("entropy_budget",
                             [](const BoE& p) { return p.options().entropy_budget; });
}

}  // namespace tabes::python
