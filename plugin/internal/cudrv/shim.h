#ifndef LESSISMORE_CUDRV_SHIM_H
#define LESSISMORE_CUDRV_SHIM_H

#define CUDRV_HIDDEN __attribute__((visibility("hidden")))

/* Binds the driver and initialises it, once. Returns CUDA's error number; 0: it works. */
CUDRV_HIDDEN int cudrv_open(void);
/* Why it does not work; valid for ever. */
CUDRV_HIDDEN const char *cudrv_error(void);

#endif
