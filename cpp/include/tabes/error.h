// The exceptions of tabes. Every failure a file or an argument can cause is one of these; nothing
// aborts the process. Messages say what is wrong, where, and what to do about it.
#pragma once

#include <stdexcept>

#include "tabes/export.h"

namespace tabes {

class TABES_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A checkpoint folder, config.json, index or tensor file that cannot be used.
class TABES_API CheckpointError : public Error {
 public:
  using Error::Error;
};

// An argument outside its documented range.
class TABES_API InputError : public Error {
 public:
  using Error::Error;
};

// The model computed NaN or infinite values where numbers are needed.
class TABES_API NumericsError : public Error {
 public:
  using Error::Error;
};

// A device or dtype that this build or this machine does not have, or its memory running out.
class TABES_API DeviceError : public Error {
 public:
  using Error::Error;
};

}  // namespace tabes
