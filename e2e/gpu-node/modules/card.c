// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test only. Stands for the driver `nvidia` of a vGPU host in sysfs: mdev types on a
 * T4, vendor-specific VFIO on the virtual functions of an L40S. It drives no GPU.
 *
 * A card is in equal-size mode: the first vGPU settles the framebuffer of all others
 * until the last one is gone. README.md says where each behaviour is known from.
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

enum { NO_VGPUS, T4, L40S };

static const struct model models[] = {
	[NO_VGPUS] = {},
	[T4] = { t4_types, ARRAY_SIZE(t4_types), .mdev = true },
	[L40S] = { l40s_types, ARRAY_SIZE(l40s_types) },
};

static const struct pci_device_id ids[] = {
	{ PCI_DEVICE(PCI_VENDOR_ID_NVIDIA, 0x1eb8), .driver_data = T4 },
	{ PCI_DEVICE(PCI_VENDOR_ID_NVIDIA, 0x26b9), .driver_data = L40S },
	{ PCI_DEVICE(PCI_VENDOR_ID_NVIDIA, 0x26b1), .driver_data = NO_VGPUS }, /* RTX 6000 Ada */
	{}
};
MODULE_DEVICE_TABLE(pci, ids);

unsigned int card_room(const struct card *card, const struct vgpu_type *type)
{
	if (card->vgpus && card->framebuffer != type->framebuffer)
		return 0;
	return type->most > card->vgpus ? type->most - card->vgpus : 0;
}

int card_take(struct card *card, const struct vgpu_type *type)
{
	if (!card_room(card, type) || card->vgpus == MOST_VGPUS)
		return -ENOSPC;
	card->vgpus++;
	card->framebuffer = type->framebuffer;
	return 0;
}

void card_release(struct card *card)
{
	if (!--card->vgpus)
		card->framebuffer = 0;
}

static struct pci_driver nvidia_driver;

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
	mutex_init(&card->lock);
	pci_set_drvdata(pdev, card);
	ret = pcim_enable_device(pdev);
	if (ret)
		return ret;
	return card->model->mdev ? mdev_side_start(card) : 0;
}

static void remove(struct pci_dev *pdev)
{
	struct card *card = pci_get_drvdata(pdev);

	if (pdev->is_virtfn) {
		virtual_function_remove(pdev);
		return;
	}
	pci_disable_sriov(pdev);
	if (card->model->mdev)
		mdev_side_stop(card);
}

static struct pci_driver nvidia_driver = {
	.name = "nvidia",
	.id_table = ids,
	.probe = probe,
	.remove = remove,
	.sriov_configure = pci_sriov_configure_simple,
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
