#include "tabes/version.h"

namespace tabes {

const char* version() {
  return TABES_VERSION;
}

}  // namespace tabes
