//! The fuzz targets of `fuzz/`, over their seeds and small changes of these: as ordinary tests, that
//! need no instrumented build. What fuzzing has found and was mended stays mended so.
