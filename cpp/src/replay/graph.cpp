#include "replay/graph.h"

#include <array>

namespace tabes {
namespace {

std::array<MakeRecorder, c10::COMPILE_TIME_MAX_DEVICE_TYPES>& recorders() {
  static std::array<MakeRecorder, c10::COMPILE_TIME_MAX_DEVICE_TYPES> made{};
  return made;
}

}  // namespace

bool register_recorder(c10::DeviceType type, MakeRecorder make) {
  recorders()[static_cast<size_t>(type)] = make;
  return true;
}

MakeRecorder recorder_for(c10::DeviceType type) {
  return recorders()[static_cast<size_t>(type)];
}

}  // namespace tabes
