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
	u32 most; /* on one card */
	u32 heads;
	u32 frame_rate_limit;
	const char *resolution;
};

/* A product: which types it has, and by which of the two ways vGPUs are made of it. */
struct model {
	const struct vgpu_type *types;
	size_t count;
	bool mdev; /* else on virtual functions; no types at all: no vGPUs */
};

#define MOST_VGPUS 64

/* A physical function. */
struct card {
	struct pci_dev *pdev;
	const struct model *model;
	struct mdev_side *mdev;
	struct mutex lock; /* of what follows */
	u32 framebuffer; /* of every vGPU on the card, MiB; 0 when there is none */
	unsigned int vgpus;
	DECLARE_BITMAP(positions, MOST_VGPUS); /* of those on virtual functions */
};

/* How many more vGPUs of a type fit now. The lock is held. */
unsigned int card_room(const struct card *card, const struct vgpu_type *type);
/* Counts one more vGPU; -ENOSPC when it does not fit. The lock is held. */
int card_take(struct card *card, const struct vgpu_type *type);
/* Counts one less. The lock is held. */
void card_release(struct card *card);

/* mdev.c: mdev types on a physical function. */
int mdev_side_start(struct card *card);
void mdev_side_stop(struct card *card);
int mdev_side_init(void);
void mdev_side_exit(void);

/* virtual-function.c: vendor-specific VFIO. */
int virtual_function_probe(struct pci_dev *pdev, struct card *card);
void virtual_function_remove(struct pci_dev *pdev);

#endif
