// The exceptions of tabes. Every failure a file or an argument can cause is one of these; nothing
// aborts the process. Messages say what is wrong, where, and what to do about it.
#pragma once

#include <stdexcept>

namespace tabes {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A checkpoint folder, config.json, index or tensor file that cannot be used.
class CheckpointError : public Error {
 public:
  using Error::Error;
};

// An argument outside its documented range.
class InputError : public Error {
 public:
  using Error::Error;
};

// The model computed NaN or infinite values where numbers are needed.
class NumericsError : public Error {
 public:
  using Error::Error;
};

// A device or dtype that this build or this machine does not have, or its memory running out.
class DeviceError : public Error {
 public:
  using Error::Error;
};

}  // namespace tabes
