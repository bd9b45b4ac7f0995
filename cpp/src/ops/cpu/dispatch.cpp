#include <cstdlib>
#include <string_view>

#include "ops/cpu/kernels.h"
#include "ops/cpu/panels.h"

namespace tabes::cpu {

#define TABES_DECLARE_ISA(isa)                                                \
  namespace isa {                                                             \
  template <typename T>                                                       \
  const Kernels<T>& table();                                                  \
  extern template const Kernels<float>& table<float>();                       \
  extern template const Kernels<double>& table<double>();                     \
  extern template const Kernels<c10::BFloat16>& table<c10::BFloat16>();       \
  template <typename T>                                                       \
  const PanelKernels<T>& panels();                                            \
  extern template const PanelKernels<float>& panels<float>();                 \
  extern template const PanelKernels<c10::BFloat16>& panels<c10::BFloat16>(); \
  }

TABES_DECLARE_ISA(generic)
#ifdef TABES_X86_KERNELS
TABES_DECLARE_ISA(avx2)
TABES_DECLARE_ISA(avx512)
#endif

namespace {

enum class Isa { generic, avx2, avx512 };

Isa detect() {
  // TABES_ISA lowers the choice, so that a test can run every variant on one machine.
  // NOLINTNEXTLINE(concurrency-mt-unsafe): read once, while the library is loaded
  const char* wanted = std::getenv("TABES_ISA");
  const std::string_view limit = wanted ? wanted : "";
  if (limit == "default") return Isa::generic;
#ifdef TABES_X86_KERNELS
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (has_avx512 && limit != "avx2") return Isa::avx512;
  if (has_avx2) return Isa::avx2;
#endif
  return Isa::generic;
}

Isa chosen() {
  static const Isa isa = detect();
  return isa;
}

}  // namespace

template <typename T>
const Kernels<T>& kernels() {
  switch (chosen()) {
#ifdef TABES_X86_KERNELS
    case Isa::avx512:
      return avx512::table<T>();
    case Isa::avx2:
      return avx2::table<T>();
#endif
    default:
      return generic::table<T>();
  }
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();
template const Kernels<c10::BFloat16>& kernels<c10::BFloat16>();

template <typename T>
const PanelKernels<T>& panel_kernels() {
  switch (chosen()) {
#ifdef TABES_X86_KERNELS
    case Isa::avx512:
      return avx512::panels<T>();
    case Isa::avx2:
      return avx2::panels<T>();
#endif
    default:
      return generic::panels<T>();
  }
}

template const PanelKernels<float>& panel_kernels<float>();
template const PanelKernels<c10::BFloat16>& panel_kernels<c10::BFloat16>();

const char* instruction_set() {
  switch (chosen()) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "default";
  }
}

}  // namespace tabes::cpu
