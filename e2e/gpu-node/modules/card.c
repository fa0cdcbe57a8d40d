// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test only. Stands for the driver `nvidia` of a vGPU host in sysfs: mdev types on a
 * T4, vendor-specific VFIO on the virtual functions of an L40S and of an RTX PRO 6000,
 * there also on GPU instances, of which a stand-in for NVML tells it. It drives no GPU.
 *
 * In equal-size mode the first vGPU settles the framebuffer of all others until the last
 * one is gone. README.md says where each behaviour is known from.
 */
#include <linux/module.h>
#include <linux/slab.h>

#include "card.h"

#define SCREEN(heads, resolution) (heads), 60, (resolution)
#define SMALL SCREEN(4, "5120x2880")
#define LARGE SCREEN(4, "7680x4320")
#define APPS SCREEN(1, "1280x1024")

static const struct vgpu_type t4_types[] = {
	{ 222, "GRID T4-1B", 1024, 16, 4, 45, "5120x2880" },
	{ 223, "GRID T4-2B", 2048, 8, 4, 45, "5120x2880" },
	{ 230, "GRID T4-1Q", 1024, 16, SMALL },
	{ 231, "GRID T4-2Q", 2048, 8, LARGE },
	{ 232, "GRID T4-4Q", 4096, 4, LARGE },
	{ 233, "GRID T4-8Q", 8192, 2, LARGE },
	{ 234, "GRID T4-16Q", 16384, 1, LARGE },
};

static const struct vgpu_type l40s_types[] = {
	{ 1145, "NVIDIA L40S-1B", 1024, 32, 4, 45, "5120x2880" },
	{ 1146, "NVIDIA L40S-2B", 2048, 24, 4, 45, "5120x2880" },
	{ 1147, "NVIDIA L40S-1Q", 1024, 32, SMALL },
	{ 1148, "NVIDIA L40S-2Q", 2048, 24, LARGE },
	{ 1149, "NVIDIA L40S-3Q", 3072, 16, LARGE },
	{ 1150, "NVIDIA L40S-4Q", 4096, 12, LARGE },
	{ 1151, "NVIDIA L40S-6Q", 6144, 8, LARGE },
	{ 1152, "NVIDIA L40S-8Q", 8192, 6, LARGE },
	{ 1153, "NVIDIA L40S-12Q", 12288, 4, LARGE },
	{ 1154, "NVIDIA L40S-16Q", 16384, 3, LARGE },
	{ 1155, "NVIDIA L40S-24Q", 24576, 2, LARGE },
	{ 1156, "NVIDIA L40S-48Q", 49152, 1, LARGE },
	{ 1157, "NVIDIA L40S-1A", 1024, 32, APPS },
	{ 1158, "NVIDIA L40S-2A", 2048, 24, APPS },
	{ 1159, "NVIDIA L40S-3A", 3072, 16, APPS },
	{ 1160, "NVIDIA L40S-4A", 4096, 12, APPS },
	{ 1161, "NVIDIA L40S-6A", 6144, 8, APPS },
	{ 1162, "NVIDIA L40S-8A", 8192, 6, APPS },
	{ 1163, "NVIDIA L40S-12A", 12288, 4, APPS },
	{ 1164, "NVIDIA L40S-16A", 16384, 3, APPS },
	{ 1165, "NVIDIA L40S-24A", 24576, 2, APPS },
	{ 1166, "NVIDIA L40S-48A", 49152, 1, APPS },
	{ 2164, "NVIDIA L40S-3B", 3072, 16, 4, 45, "5120x2880" },
};

#define ON_MIG(profile) LARGE, (profile)

/* The number of DC-1-24Q is that of a real driver; the others are made up. */
static const struct vgpu_type rtx_pro_6000_types[] = {
	{ 1531, "NVIDIA RTX Pro 6000 Blackwell DC-24Q", 24576, 4, LARGE },
	{ 1532, "NVIDIA RTX Pro 6000 Blackwell DC-48Q", 49152, 2, LARGE },
	{ 1533, "NVIDIA RTX Pro 6000 Blackwell DC-96Q", 98304, 1, LARGE },
	{ 1555, "NVIDIA RTX Pro 6000 Blackwell DC-1-2Q", 2048, 12, ON_MIG(47) },
	{ 1556, "NVIDIA RTX Pro 6000 Blackwell DC-1-4Q", 4096, 6, ON_MIG(47) },
	{ 1558, "NVIDIA RTX Pro 6000 Blackwell DC-1-8Q", 8192, 3, ON_MIG(47) },
	{ 1560, "NVIDIA RTX Pro 6000 Blackwell DC-1-12Q", 12288, 2, ON_MIG(47) },
	{ 1561, "NVIDIA RTX Pro 6000 Blackwell DC-1-24Q", 24576, 1, ON_MIG(47) },
	{ 1566, "NVIDIA RTX Pro 6000 Blackwell DC-2-24Q", 24576, 2, ON_MIG(35) },
	{ 1567, "NVIDIA RTX Pro 6000 Blackwell DC-2-48Q", 49152, 1, ON_MIG(35) },
	{ 1572, "NVIDIA RTX Pro 6000 Blackwell DC-4-96Q", 98304, 1, ON_MIG(32) },
};

enum { NO_VGPUS, T4, L40S, RTX_PRO_6000 };

static const struct model models[] = {
	[NO_VGPUS] = {},
	[T4] = { t4_types, ARRAY_SIZE(t4_types), .mdev = true, .gib = 16 },
	[L40S] = { l40s_types, ARRAY_SIZE(l40s_types), .gib = 48 },
	[RTX_PRO_6000] = { rtx_pro_6000_types, ARRAY_SIZE(rtx_pro_6000_types), .gib = 96, .units = 12 },
};

static const struct pci_device_id ids[] = {
	{ PCI_DEVICE(PCI_VENDOR_ID_NVIDIA, 0x1eb8), .driver_data = T4 },
	{ PCI_DEVICE(PCI_VENDOR_ID_NVIDIA, 0x26b9), .driver_data = L40S },
	{ PCI_DEVICE(PCI_VENDOR_ID_NVIDIA, 0x2bb5), .driver_data = RTX_PRO_6000 },
	{ PCI_DEVICE(PCI_VENDOR_ID_NVIDIA, 0x26b1), .driver_data = NO_VGPUS }, /* RTX 6000 Ada */
	{}
};
MODULE_DEVICE_TABLE(pci, ids);

/* The starts of a type divide its region evenly. */
static int start_of(const struct region *region, const struct vgpu_type *type, unsigned int number)
{
	return region->gib * number / type->most;
}

static unsigned int length_of(const struct vgpu_type *type)
{
	return type->framebuffer / 1024;
}

static bool is_free(const struct region *region, const struct vgpu_type *type, int start)
{
	unsigned int end = start + length_of(type);

	return find_next_bit(region->taken, end, start) >= end;
}

unsigned int region_room(const struct region *region, const struct vgpu_type *type)
{
	unsigned int number, room = 0;

	if (region->vgpus && !region->mixed && region->framebuffer != type->framebuffer)
		return 0;
	for (number = 0; number < type->most; number++)
		room += is_free(region, type, start_of(region, type, number));
	return room;
}

int region_take(struct region *region, const struct vgpu_type *type, int start)
{
	unsigned int number;
	int found;

	if (!region_room(region, type))
		return -ENOSPC;
	for (number = 0; number < type->most; number++) {
		found = start_of(region, type, number);
		if ((start != NO_START && start != found) || !is_free(region, type, found))
			continue;
		bitmap_set(region->taken, found, length_of(type));
		region->framebuffer = type->framebuffer;
		region->vgpus++;
		return found;
	}
	return -ENOSPC;
}

void region_release(struct region *region, const struct vgpu_type *type, int start)
{
	unsigned int number = type->most;

	while (start == NO_START && number--)
		if (test_bit(start_of(region, type, number), region->taken))
			start = start_of(region, type, number);
	bitmap_clear(region->taken, start, length_of(type));
	if (!--region->vgpus)
		region->framebuffer = 0;
}

struct region *card_region(struct card *card, u32 instance)
{
	unsigned int i;

	if (instance == NO_INSTANCE)
		return &card->whole;
	for (i = 0; i < card->count; i++)
		if (card->instances[i].id == instance)
			return &card->instances[i].region;
	return NULL;
}

int card_choose(struct card *card, const struct vgpu_type *type, u32 *instance)
{
	unsigned int i;

	*instance = NO_INSTANCE;
	if (!type->profile)
		return !card->mig && region_room(&card->whole, type) ? 0 : -ENOSPC;
	for (i = 0; card->mig && i < card->count; i++) {
		const struct instance *seen = &card->instances[i];

		if (seen->ready && seen->profile == type->profile && seen->id < *instance &&
		    region_room(&seen->region, type))
			*instance = seen->id;
	}
	return *instance == NO_INSTANCE ? -ENOSPC : 0;
}

static struct pci_driver nvidia_driver;
static unsigned int bindings;

static int probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct card *card;
	int ret;

	if (pdev->is_virtfn) {
		if (pdev->physfn->dev.driver != &nvidia_driver.driver)
			return -ENODEV;
		return virtual_function_probe(pdev, pci_get_drvdata(pdev->physfn));
	}
	card = devm_kzalloc(&pdev->dev, sizeof(*card), GFP_KERNEL);
	if (!card)
		return -ENOMEM;
	card->pdev = pdev;
	card->model = &models[id->driver_data];
	card->whole.gib = card->model->gib;
	card->binding = ++bindings;
	mutex_init(&card->lock);
	pci_set_drvdata(pdev, card);
	ret = pcim_enable_device(pdev);
	if (ret)
		return ret;
	if (card->model->mdev)
		return mdev_side_start(card);
	return card->model->count ? sysfs_create_group(&pdev->dev.kobj, &instances_group) : 0;
}

/* Virtual functions stay, without this driver: they are switched off by whoever switched them on. */
static void let_functions_go(struct pci_dev *pdev)
{
	struct pci_dev *vf = NULL;

	while ((vf = pci_get_device(pdev->vendor, PCI_ANY_ID, vf)))
		if (vf->is_virtfn && vf->physfn == pdev && vf->dev.driver == &nvidia_driver.driver)
			device_release_driver(&vf->dev);
}

static void remove(struct pci_dev *pdev)
{
	struct card *card = pci_get_drvdata(pdev);

	if (pdev->is_virtfn) {
		virtual_function_remove(pdev);
		return;
	}
	if (card->model->units)
		let_functions_go(pdev);
	else
		pci_disable_sriov(pdev);
	if (card->model->mdev)
		mdev_side_stop(card);
	else if (card->model->count)
		sysfs_remove_group(&pdev->dev.kobj, &instances_group);
}

/* The real driver takes no number of virtual functions: sriov-manage switches them while another driver has the card. */
static int configure(struct pci_dev *pdev, int count)
{
	const struct card *card = pci_get_drvdata(pdev);

	return card->model->units ? -EPERM : pci_sriov_configure_simple(pdev, count);
}

static struct pci_driver nvidia_driver = {
	.name = "nvidia",
	.id_table = ids,
	.probe = probe,
	.remove = remove,
	.sriov_configure = configure,
	/* A vfio driver for its virtual functions. */
	.driver_managed_dma = true,
};

static int __init nvidia_init(void)
{
	int ret = mdev_side_init();

	if (ret)
		return ret;
	ret = pci_register_driver(&nvidia_driver);
	if (ret)
		mdev_side_exit();
	return ret;
}
module_init(nvidia_init);

static void __exit nvidia_exit(void)
{
	pci_unregister_driver(&nvidia_driver);
	mdev_side_exit();
}
module_exit(nvidia_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Test only: the sysfs of a vGPU host driver");
