// mnv3_fast._C: the checks before each call of a fused module.
#pragma once
#include <pybind11/pybind11.h>

void bind_staleness(pybind11::module_& m);
