// The version of tabes: here alone, read by CMake and by the Python package's build.
#pragma once

#include "tabes/export.h"

#define TABES_VERSION_MAJOR 0
#define TABES_VERSION_MINOR 1
#define TABES_VERSION_PATCH 0
#define TABES_VERSION "0.1.0"

namespace tabes {

// TABES_VERSION of the library that runs, which may be another than that compiled against: while
// the major version is 0, minor versions differ in their interface, patch versions do not.
TABES_API const char* version();

}  // namespace tabes
