/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef CARD_H
#define CARD_H

#include <linux/bitmap.h>
#include <linux/mutex.h>
#include <linux/pci.h>

/* A vGPU type. */
struct vgpu_type {
	u32 id;
	const char *name;
	u32 framebuffer; /* MiB */
	u32 most; /* on one card, or on one GPU instance */
	u32 heads;
	u32 frame_rate_limit;
	const char *resolution;
	u32 profile; /* number of the profile of the GPU instance under it; 0: time-sliced */
};

/* A product: which types it has, and by which of the two ways vGPUs are made of it. */
struct model {
	const struct vgpu_type *types;
	size_t count;
	bool mdev; /* else on virtual functions; no types at all: no vGPUs */
	u32 gib; /* memory */
	u32 units; /* of memory, as GPU instances have them; 0 without MIG */
};

#define MOST_GIB 96
#define MOST_INSTANCES 4
#define NO_START (-1)
#define NO_INSTANCE U32_MAX

/* Memory in which vGPUs lie side by side: that of a card, or of a GPU instance. */
struct region {
	u32 gib;
	bool mixed; /* else all have one framebuffer size */
	u32 framebuffer; /* of the first vGPU, MiB; 0 when there is none */
	unsigned int vgpus;
	DECLARE_BITMAP(taken, MOST_GIB);
};

/* A GPU instance, as NVML says. */
struct instance {
	u32 id, profile, start, size;
	bool ready; /* has a compute instance */
	struct region region;
};

/* A physical function. */
struct card {
	struct pci_dev *pdev;
	const struct model *model;
	struct mdev_side *mdev;
	unsigned int binding; /* counts how often a card was given to the driver */
	struct mutex lock; /* of what follows */
	struct region whole;
	bool mig;
	unsigned int count;
	struct instance instances[MOST_INSTANCES];
};

/* How many more vGPUs of a type fit in a region now. The lock is held. */
unsigned int region_room(const struct region *region, const struct vgpu_type *type);
/* Puts one there, at its first free start or at this one, and returns where; -ENOSPC when it does not fit. The lock is
 * held. */
int region_take(struct region *region, const struct vgpu_type *type, int start);
/* Takes one from a start, or from its last one. The lock is held. */
void region_release(struct region *region, const struct vgpu_type *type, int start);
/* The region with this GPU instance under it, or of the card; NULL without one. The lock is held. */
struct region *card_region(struct card *card, u32 instance);
/* The GPU instance on which a vGPU of a type comes to be, NO_INSTANCE when it is time-sliced; -ENOSPC without room. The
 * lock is held. */
int card_choose(struct card *card, const struct vgpu_type *type, u32 *instance);

/* instances.c: what NVML says of GPU instances. */
extern const struct attribute_group instances_group;

/* mdev.c: mdev types on a physical function. */
int mdev_side_start(struct card *card);
void mdev_side_stop(struct card *card);
int mdev_side_init(void);
void mdev_side_exit(void);

/* virtual-function.c: vendor-specific VFIO. */
int virtual_function_probe(struct pci_dev *pdev, struct card *card);
void virtual_function_remove(struct pci_dev *pdev);

#endif
