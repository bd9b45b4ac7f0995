// What the library gives to others: libtabes hides every symbol but those that this marks. A public
// function, and a public class that has virtual or out-of-line members, needs it; without, a host
// (the Python module among them) fails to link or to load with an undefined symbol.
#pragma once

#if defined(_WIN32)
#define TABES_API
#else
#define TABES_API __attribute__((visibility("default")))
#endif
